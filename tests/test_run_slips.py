import random

import pytest

from spark_jax.envs.response import METAREASONING, parse_response
from spark_jax.models.presets import load_model
from spark_jax.run import warmup
from spark_jax.run.policy import Policy
from spark_jax.run.slips import AGAIN, IN_A_ROW, MISJUDGED, Judgement, spoken_words, with_slips
from spark_jax.run.worlds import World
from spark_jax.types import Task

REFUSAL = "Nothing happens."
TURNS = [
    ("<think>Look.</think><action>look</action>", "There is a baby wolf in a red box."),
    ("<explore>The wolf may do.</explore><action>take wolf from red box</action>", "Taken."),
    ("<think>Done; put the wolf down.</think><action>put wolf in red box</action>", "Put."),
]
WORDS = ["beaver", "lamp", "red", "toad"]


def slipped(share, seed=0, turns=TURNS, words=WORDS, retry="explore", judgement=None):
    rng = random.Random(seed)
    return with_slips("find a wolf", turns, share, words, REFUSAL, retry, rng, judgement)


def test_words_are_those_of_actions_after_the_verb():
    assert spoken_words([TURNS]) == ["box", "from", "red", "wolf"]


def test_a_search_has_no_names_of_its_own():
    said = "<think>red mug; search.</think><action>search[red steel mug]</action>"
    assert spoken_words([[(said, "results")]]) == []
    assert slipped(1.0, turns=[(said, "results")]) == [(said, "results")]


def test_without_slips_nothing_changes():
    assert slipped(0.0) == TURNS
    assert slipped(1.0, words=["wolf", "red"]) == TURNS  # both are in the dialogue


def test_each_action_with_a_name_goes_wrong_first_and_then_right():
    turns = slipped(1.0)
    assert turns[0] == TURNS[0]  # "look" has no name
    for first, original in (1, TURNS[1]), (1 + IN_A_ROW + 1, TURNS[2]):
        wrong, (response, observation) = (
            turns[first : first + IN_A_ROW],
            turns[first + IN_A_ROW],
        )
        before, after = parse_response(original[0]), parse_response(response)
        assert observation == original[1] and after.well_formed
        assert (after.kind, after.action) == ("explore", before.action)
        assert after.reasoning == f"{AGAIN} {before.reasoning}"
        for i, (said, answer) in enumerate(wrong):
            parsed = parse_response(said)
            assert answer == REFUSAL and parsed.well_formed
            assert parsed.kind == ("explore" if i else before.kind)
            assert parsed.reasoning.startswith(AGAIN) == bool(i)
            words, right = parsed.action.split(), before.action.split()
            changed = [w for w, r in zip(words, right, strict=True) if w != r]
            assert changed and set(changed) <= {"beaver", "lamp", "toad"}  # "red" is there
            assert words[0] == right[0]
    assert len(turns) == 1 + 2 * (IN_A_ROW + 1)


def test_a_wrong_judgement_is_answered_by_the_right_one():
    """Its verb never goes wrong by a name, so that after a refusal the contrary is always right."""
    at = 0

    def wrong(steps, observations, i):
        assert len(steps) == len(observations)
        return ("It is here.", "take it") if i == at else None

    judgement = Judgement("take", wrong)
    turns = slipped(1.0, judgement=judgement)
    assert turns[0] == ("<think>It is here.</think><action>take it</action>", REFUSAL)
    retry = parse_response(turns[1][0])
    assert (retry.kind, retry.action) == ("explore", "look")
    assert retry.reasoning == f"{AGAIN} Look." and turns[1][1] == TURNS[0][1]
    assert turns[2] == TURNS[1]  # "take wolf"
    assert len(turns) == 3 + IN_A_ROW + 1  # "put wolf" goes wrong by a name as before

    at = 2  # a wrong judgement, then wrong words, then what is right
    both = slipped(1.0, judgement=judgement)[2:]
    actions = [parse_response(response).action for response, _ in both]
    assert actions[0] == "take it" and actions[-1] == "put wolf in red box"
    assert [answer == REFUSAL for _, answer in both] == [True] * (1 + IN_A_ROW) + [False]
    assert all(parse_response(response).reasoning.startswith(AGAIN) for response, _ in both[1:])

    at = 0
    refused = [(TURNS[0][0], REFUSAL)]
    assert slipped(1.0, turns=refused, judgement=judgement) == refused
    often = [len(slipped(0.2, seed, TURNS[:1], judgement=judgement)) == 2 for seed in range(2000)]
    assert sum(often) / 2000 == pytest.approx(0.2 * MISJUDGED, abs=0.04)


def test_the_share_and_what_is_drawn():
    many = [TURNS[1]] * 4000
    out = slipped(0.25, turns=many)
    first = sum(a != REFUSAL and b == REFUSAL for (_, a), (_, b) in zip(out, out[1:], strict=False))
    assert first / 4000 == pytest.approx(0.25, abs=0.03)
    wrong = [parse_response(response) for response, answer in out if answer == REFUSAL]
    assert {name for w in wrong for name in w.action.split()} >= {"beaver", "lamp", "toad", "wolf"}
    misread = sum("wolf" not in w.reasoning for w in wrong if "wolf" not in w.action)
    assert 0.4 < misread / sum("wolf" not in w.action for w in wrong) < 0.6
    assert slipped(0.25, 5, many) == slipped(0.25, 5, many) != slipped(0.25, 6, many)


def test_other_methods_have_other_tags():
    turns = [("<monitor>On.</monitor><action>take wolf</action>", "Taken.")]
    assert slipped(1.0, turns=turns) == turns  # no tags of theirs
    kinds = [
        parse_response(response, METAREASONING).kind
        for response, _ in slipped(1.0, turns=turns, retry="reflection")
    ]
    assert kinds == ["monitor"] + IN_A_ROW * ["reflection"]


def test_what_is_refused_already_does_not_go_wrong_before():
    mistake = ("<monitor>On.</monitor><action>the wolf</action>", REFUSAL)
    again = ("<reflection>Say it right.</reflection><action>take wolf</action>", "Taken.")
    out = slipped(1.0, turns=[mistake, again], retry="reflection")
    assert out[0] == mistake and len(out) == 2 + IN_A_ROW


def test_an_ill_formed_response_is_left_alone():
    turns = [("<think>Take <explore> it.</think><action>take wolf</action>", "Taken.")]
    assert slipped(1.0, turns=turns) == turns


def test_the_warm_up_does_not_imitate_slips():
    example = warmup.Example(Task("toy", "x", 0), "", "find a wolf", TURNS)
    other = example._replace(turns=[(t.replace("wolf", "toad"), o) for t, o in TURNS])
    world = World(None, {}, {}, "", None, None, refusal=REFUSAL)
    codec = load_model("nano", texts=warmup.texts([example, other])).codec
    policy = Policy(None, None, codec, None)
    lessons = warmup.make_lessons([example, other], policy, 4096, world)
    assert [len(lesson.tree.nodes) for lesson in lessons] == [4, 4]
    vary = warmup.variation(lessons, policy, 4096, 0.0, 1.0, world)
    tree = vary(lessons[0], random.Random(0))
    assert [node.valid for node in tree.nodes] == [True] * 2 + ([False] * IN_A_ROW + [True]) * 2
    plain = warmup.variation(lessons, policy, 4096, 0.0, 0.0, world)
    assert plain(lessons[0], random.Random(0)) is lessons[0].tree
    judgement = Judgement("take", lambda steps, seen, i: ("Here.", "take it") if not i else None)
    judging = warmup.variation(lessons, policy, 4096, 0.0, 1.0, world._replace(judgement=judgement))
    tree = judging(lessons[0], random.Random(0))
    assert [n.valid for n in tree.nodes] == [True, False, True, True] + [False] * IN_A_ROW + [True]
    silent = warmup.variation(lessons, policy, 4096, 0.0, 1.0, world._replace(refusal=""))
    assert silent(lessons[0], random.Random(0)) is lessons[0].tree
