"""Reading and writing responses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_jax.envs.response import (
    METAREASONING,
    METAREASONING_RULES,
    Parsed,
    parse_response,
    render_response,
    render_tagged,
)

_TEXT = st.text(alphabet="ab <>/\n.", max_size=30)


@given(reasoning=_TEXT, explore=st.booleans(), action=_TEXT.filter(str.strip))
def test_round_trip(reasoning, explore, action):
    parsed = parse_response(render_response(reasoning, explore, action))
    kind = "explore" if explore else "think"
    assert parsed == Parsed(reasoning.strip(), kind, " ".join(action.split()), True)


@given(
    st.lists(
        st.sampled_from(
            ["<think>", "</think>", "<explore>", "</explore>", "<action>", "</action>", "go", " "]
        ),
        max_size=9,
    )
)
def test_well_formed_is_exactly_one_block_each(parts):
    parsed = parse_response("".join(parts))
    tags = [part for part in parts if part.startswith("<")]
    shapes = ([f"<{n}>", f"</{n}>", "<action>", "</action>"] for n in ("think", "explore"))
    if parsed.well_formed:
        assert tags in list(shapes) and parsed.action and parsed.kind == tags[0][1:-1]
    complete = False  # an explore block is complete iff it is opened before it is closed
    opened = False
    for part in tags:
        opened |= part == "<explore>"
        complete |= opened and part == "</explore>"
    assert (parsed.kind == "explore") == complete


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think><action>go  to\nx</action>", Parsed("a", "think", "go to x", True)),
        (" <explore>a</explore>\n<action>b</action> ", Parsed("a", "explore", "b", True)),
        ("<think>a</think><action>b", Parsed("a", "think", "", False)),
        ("<explore>a<action>b</action>", Parsed("", "", "b", False)),
        ("<think>a</think>so <action>b</action>", Parsed("a", "think", "b", False)),
        ("<action>b</action><think>a</think>", Parsed("a", "think", "b", False)),
        ("<think>a</think><explore>c</explore><action>b</action>", Parsed("c", "explore", "b", 0)),
        ("<think>a</think><action>b</action><action>c</action>", Parsed("a", "think", "b", False)),
        ("<think>a</think><action> </action>", Parsed("a", "think", "", False)),
        ("<think>a</explore><action>b</action>", Parsed("", "", "b", False)),
        ("plain text", Parsed("", "", "", False)),
        ("", Parsed("", "", "", False)),
    ],
)  # fmt: skip
def test_parse(text, expected):
    assert parse_response(text) == expected


@pytest.mark.parametrize("bad", [("<think>", "go"), ("a", "</action>"), ("a", " ")])
def test_render_refuses_what_would_not_come_back(bad):
    with pytest.raises(ValueError):
        render_response(bad[0], False, bad[1])


@pytest.mark.parametrize("tag", METAREASONING)
def test_other_tags_are_well_formed_where_they_are_asked_for(tag):
    text = render_tagged("a", tag, "go")
    assert parse_response(text, METAREASONING) == Parsed("a", tag, "go", True)
    assert parse_response(text).well_formed == (tag == "explore")
    assert parse_response(text).action == "go"
    assert f"{tag}: " in METAREASONING_RULES


def test_thinking_is_no_kind_of_metareasoning():
    text = "<think>a</think><action>b</action>"
    assert parse_response(text, METAREASONING) == Parsed("", "", "b", False)
    both = "<monitor>a</monitor><explore>c</explore><action>b</action>"
    assert parse_response(both, METAREASONING) == Parsed("c", "explore", "b", False)
