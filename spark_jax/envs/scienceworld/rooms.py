"""Reading ScienceWorld's descriptions of rooms, in both styles."""

from __future__ import annotations

import re
from typing import NamedTuple


class Room(NamedTuple):
    """What a description of a room says."""

    name: str
    things: tuple[str, ...]  # names as actions use them, without the agent and air
    exits: tuple[str, ...]


_FULL = re.compile(
    r"This (?:room|outside location) is called (?:the )?(?P<name>.*?)\. "
    r"(?:In it|Here),? you see:\n(?P<things>.*?)\n?You also see:\n(?P<exits>.*)",
    re.DOTALL,
)
_SHORT = re.compile(r"In (?P<name>[^\n]*):\n(?P<things>.*?)\n?doors: (?P<exits>.*)", re.DOTALL)
_ARTICLE = re.compile(r"^(?:an?|the|some) ", re.IGNORECASE)
_STATE = re.compile(r"(?: (?:turned off|turned on|off|on|deactivated|activated|open|closed))+$")
_ABBREVIATIONS = tuple(
    (re.compile(pattern, re.MULTILINE), replacement)
    for pattern, replacement in (
        (r"^the agent\n?|^a substance called air\n?", ""),
        (r"(?:a )?substance called ", ""),
        (r" \(containing nothing\)", ""),
        (r",? (?:which|that) is (turned off|turned on|off|on|deactivated|activated)\b", r" \1"),
        (r" (?:In|On) the [^.\n:]*? is: nothing\.", ""),
        (r"\. The [^.\n]*? door is (open|closed)\.", r" \1."),
        (r", currently reading a temperature of (-?\d+) degrees celsius", r", \1 degrees"),
        (r"\.$", ""),
    )
)


def tidy(text: str) -> str:
    """The game's text without tabs, blank lines and spaces at the ends of lines."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def abbreviate(text: str) -> str:
    """A tidy description of a room in fewer words; any other text is returned as it is.

    Drops what every room has (the agent, air, "nothing" in containers, doors being open). Names
    of things stay exactly as the game understands them.
    """
    room = _FULL.fullmatch(text)
    if not room:
        return text
    things = room["things"]
    for pattern, replacement in _ABBREVIATIONS:
        things = pattern.sub(replacement, things)
    lines = [*things.splitlines(), f"doors: {', '.join(_full_exits(room['exits']))}"]
    return "\n".join([f"In {room['name']}:", *lines])


def read_room(text: str) -> Room | None:
    """The room that `text` describes, None when it describes none."""
    if room := _FULL.fullmatch(text):
        exits = [_door(name) for name in _full_exits(room["exits"])]
    elif room := _SHORT.fullmatch(text):
        exits = [_door(name) for name in room["exits"].split(", ")]
    else:
        return None
    things = [_thing(line) for line in room["things"].splitlines()]
    return Room(
        room["name"],
        tuple(name for name in things if name not in ("agent", "air", "")),
        tuple(exits),
    )


def _full_exits(text: str) -> list[str]:
    """Exits as the short style names them: "kitchen", "kitchen (closed)"."""
    return [
        re.sub(r"^A door to (?:the )?", "", line)
        .replace(" (that is open)", "")
        .replace("(that is closed)", "(closed)")
        for line in text.splitlines()
    ]


def _door(text: str) -> str:
    return text.removesuffix(" (closed)")


def _thing(line: str) -> str:
    name = re.split(r"\. |, | \(| titled ", _ARTICLE.sub("", line), maxsplit=1)[0].removesuffix(".")
    return _STATE.sub("", name.removeprefix("substance called "))
