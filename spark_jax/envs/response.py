"""The agent's response as text: a block of reasoning, whose tag says its kind (`<think>` or
`<explore>`; RLVMR has four others), then an `<action>` block."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

Kind = Literal["think", "explore", "planning", "reflection", "monitor", ""]

# Kinds of reasoning that a response may begin with; in ill-formed text the first one counts.
THINKING: tuple[Kind, ...] = ("explore", "think")
METAREASONING: tuple[Kind, ...] = ("explore", "planning", "reflection", "monitor")  # RLVMR

# What a system prompt says of the form.
RESPONSE_RULES = (
    "Answer in exactly this form, with one short sentence of reasoning:\n"
    "<think>what you know and do next</think><action>one action</action>\n"
    "When you are unsure which of several ways is best, write <explore> instead of <think>:\n"
    "<explore>which ways there are and which you try</explore><action>one action</action>"
)

METAREASONING_RULES = (
    "Answer in exactly this form, with one short sentence of reasoning:\n"
    "<TAG>your reasoning</TAG><action>one action</action>\n"
    "TAG is one of four words:\n"
    "planning: break the task into steps, or look at the plan again\n"
    "explore: try something new, where it is not clear which way is best\n"
    "reflection: say what went wrong after an action that failed, and do another one\n"
    "monitor: check how far you are and go on with the plan"
)

_BLOCK = {
    name: re.compile(rf"<{name}>((?:(?!<{name}>).)*?)</{name}>", re.DOTALL)
    for name in ("action", *dict.fromkeys(THINKING + METAREASONING))
}


@functools.cache
def _patterns(tags: Sequence[Kind]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Any tag, and a whole well-formed response."""
    names = "|".join(tags)
    tag = re.compile(rf"</?(?:{names}|action)>")
    whole = (
        rf"\s*<(?P<kind>{names})>(?P<reasoning>.*?)</(?P=kind)>"
        r"\s*<action>(?P<action>.*?)</action>\s*"
    )
    return tag, re.compile(whole, re.DOTALL)


class Parsed(NamedTuple):
    """What a response says."""

    reasoning: str  # text of the first complete block, explore before others, else ""
    kind: Kind  # "explore" iff a complete explore block is present: the step is a spark point
    action: str  # text of the first complete action block on one line, "" when there is none
    well_formed: bool  # exactly one reasoning block, then exactly one action block, nothing else


def parse_response(text: str, tags: tuple[Kind, ...] = THINKING) -> Parsed:
    """Read a response; never fails, ill-formed text gives what can be read of it.

    `tags`: the kinds of reasoning there are, THINKING or METAREASONING.
    """
    tag, whole = _patterns(tags)
    match = whole.fullmatch(text)
    if match and not any(tag.search(match[name]) for name in ("reasoning", "action")):
        action = _one_line(match["action"])
        return Parsed(match["reasoning"].strip(), match["kind"], action, bool(action))
    kind: Kind = ""
    reasoning = ""
    for name in tags:
        if block := _BLOCK[name].search(text):
            kind, reasoning = name, block[1].strip()
            break
    action = _BLOCK["action"].search(text)
    return Parsed(reasoning, kind, _one_line(action[1]) if action else "", False)


def render_response(reasoning: str, explore: bool, action: str) -> str:
    """The one well-formed spelling of a response, e.g. `<think>…</think><action>…</action>`.

    Raises ValueError when a text holds a tag itself, or the action is empty.
    """
    return render_tagged(reasoning, "explore" if explore else "think", action)


def render_tagged(reasoning: str, tag: Kind, action: str) -> str:
    """The same with any tag."""
    for text in (reasoning, action):
        if _patterns(THINKING + METAREASONING)[0].search(text):
            raise ValueError(f"the text of a response must not hold a tag: {text!r}")
    if not action.strip():
        raise ValueError("a response needs an action")
    return f"<{tag}>{reasoning.strip()}</{tag}><action>{_one_line(action)}</action>"


def _one_line(text: str) -> str:
    return " ".join(text.split())
