"""What a game of ALFWorld is: a household in PDDL and a sentence that says what to do in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
# The paper's L2 (env.protocol=held_out): never trained on.
HELD_OUT = ("pick_cool_then_place_in_recep", "pick_two_obj_and_place")

_TASK = re.compile(r'"rhs":\s*("(?:[^"\\]|\\.)*Your task is to: (?:[^"\\]|\\.)*")')
# Walkthroughs of games made by alfworld before 0.4 say "put"; the grammar of today "move".
_PUT = re.compile(r"put (.+) in/on (.+)")


class Game(NamedTuple):
    """One game. Domain and grammar are those that the package `alfworld` ships."""

    name: str  # unique among the games of a run
    type: str  # one of TASK_TYPES
    goal: str  # sentence of the task, e.g. "put a clean mug in desk."
    problem: str  # PDDL problem
    walkthrough: tuple[str, ...] = ()  # actions that win; () where none is known


def game_of_file(name: str, task_type: str, fields: Mapping) -> Game:
    """The game in the content of a `game.tw-pddl`. Raises ValueError when a part is missing."""
    missing = [key for key in ("pddl_problem", "grammar") if not isinstance(fields.get(key), str)]
    if missing:
        raise ValueError(f"it has no {' and no '.join(missing)}")
    found = _TASK.search(fields["grammar"])
    if found is None:
        raise ValueError("its grammar has no sentence 'Your task is to: ...'")
    goal = json.loads(found[1]).partition("Your task is to: ")[2].strip()
    walkthrough = [_PUT.sub(r"move \1 to \2", a) for a in fields.get("walkthrough") or ()]
    return Game(name, task_type, goal, fields["pddl_problem"], tuple(walkthrough))
