"""The agent's response as text: a `<think>` or `<explore>` block, then an `<action>` block."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Kind = Literal["think", "explore", ""]

# What a system prompt says of the form.
RESPONSE_RULES = (
    "Answer in exactly this form, with one short sentence of reasoning:\n"
    "<think>what you know and do next</think><action>one action</action>\n"
    "When you are unsure which of several ways is best, write <explore> instead of <think>:\n"
    "<explore>which ways there are and which you try</explore><action>one action</action>"
)

_TAG = re.compile(r"</?(?:think|explore|action)>")
_WELL_FORMED = re.compile(
    r"\s*<(?P<kind>think|explore)>(?P<reasoning>.*?)</(?P=kind)>\s*<action>(?P<action>.*?)</action>\s*",
    re.DOTALL,
)
_BLOCK = {
    name: re.compile(rf"<{name}>((?:(?!<{name}>).)*?)</{name}>", re.DOTALL)
    for name in ("think", "explore", "action")
}


class Parsed(NamedTuple):
    """What a response says."""

    reasoning: str  # text of the first complete explore block, else think block, else ""
    kind: Kind  # "explore" iff a complete explore block is present: the step is a spark point
    action: str  # text of the first complete action block on one line, "" when there is none
    well_formed: bool  # exactly one reasoning block, then exactly one action block, nothing else


def parse_response(text: str) -> Parsed:
    """Read a response; never fails, ill-formed text gives what can be read of it."""
    match = _WELL_FORMED.fullmatch(text)
    if match and not any(_TAG.search(match[name]) for name in ("reasoning", "action")):
        action = _one_line(match["action"])
        return Parsed(match["reasoning"].strip(), match["kind"], action, bool(action))
    kind: Kind = ""
    reasoning = ""
    for name in ("explore", "think"):
        if block := _BLOCK[name].search(text):
            kind, reasoning = name, block[1].strip()
            break
    action = _BLOCK["action"].search(text)
    return Parsed(reasoning, kind, _one_line(action[1]) if action else "", False)


def render_response(reasoning: str, explore: bool, action: str) -> str:
    """The one well-formed spelling of a response, e.g. `<think>…</think><action>…</action>`.

    Raises ValueError when a text holds a tag itself, or the action is empty.
    """
    for text in (reasoning, action):
        if _TAG.search(text):
            raise ValueError(f"the text of a response must not hold a tag: {text!r}")
    if not action.strip():
        raise ValueError("a response needs an action")
    tag = "explore" if explore else "think"
    return f"<{tag}>{reasoning.strip()}</{tag}><action>{_one_line(action)}</action>"


def _one_line(text: str) -> str:
    return " ".join(text.split())
