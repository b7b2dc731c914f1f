"""A toy environment with a known optimum: a chain of rooms, each with one right door.

Task type "doors-KxC": K critical rooms with C doors each; "doors-KxC+W" adds W rooms with nothing
but a corridor ("go on") before each critical one. The colour of the right door depends on the
name of the room alone, so it can be learned; the variation chooses the names. A wrong door is a
dead end. A guess is right with q = 1/C, a single episode of guesses succeeds with q^K; an agent
that gets B tries at each door, and goes on with one that was right, with (1 - (1 - q)^B)^K.
"""

from __future__ import annotations

import functools
import hashlib
import re
from typing import NamedTuple

from spark_jax.envs.response import RESPONSE_RULES
from spark_jax.types import Start, StepResult, Task, UserError

COLOURS = ("red", "blue", "green", "white", "black", "brown", "pink", "grey")
ROOMS = ("owl", "fox", "bear", "wolf", "hare", "crow", "frog", "lynx")
VARIATIONS = 512
NOT_UNDERSTOOD = "Nothing happens."
SYSTEM = (
    "You walk through a chain of rooms. In each room one door is the right one, always the same "
    "for a room of that name; any other is a dead end. The actions are: open COLOUR (a door of "
    "that colour), and in a corridor: go on.\n\n" + RESPONSE_RULES
)


class _Shape(NamedTuple):
    doors: int
    choices: int
    corridor: int


class ToyEnvironment:
    """Pure Python, instant, deterministic."""

    def __init__(self):
        self._shape: _Shape | None = None

    def start(self, task: Task) -> Start:
        """The first room. Raises UserError for a type or variation that does not exist."""
        self._shape = _shape(task.type)
        if not 0 <= task.variation < VARIATIONS:
            raise UserError(
                f"toy {task.type} has no variation {task.variation}: use 0 to {VARIATIONS - 1}."
            )
        self._rooms = rooms(task)
        self._passed = 0
        self._corridor_left = self._shape.corridor
        self._done = False
        return Start(f"pass {self._shape.doors} doors", self._room())

    def step(self, action: str) -> StepResult:
        """`open COLOUR`, or `go on` in a corridor."""
        if self._shape is None or self._done:
            raise ValueError("step() was called before start() or after the end of the episode")
        valid = True
        text = ""
        if self._corridor_left:
            valid = action == "go on"
            self._corridor_left -= valid
        elif match := re.fullmatch(r"open (\w+)", action):
            valid = match[1] in COLOURS[: self._shape.choices]
            if valid and match[1] == right_door(self._rooms[self._passed], self._shape.choices):
                self._passed += 1
                self._corridor_left = self._shape.corridor
                self._done = self._passed == self._shape.doors
                text = "You are out." if self._done else ""
            elif valid:
                self._done, text = True, "A dead end."
        else:
            valid = False
        success = self._passed == self._shape.doors
        score = 100.0 * self._passed / self._shape.doors
        text = text if valid else NOT_UNDERSTOOD
        return StepResult(text or self._room(), score, self._done, success, valid)

    def close(self) -> None:
        """Nothing to give back."""

    def _room(self) -> str:
        if self._corridor_left:
            return f"A corridor, {self._corridor_left} to go."
        doors = ", ".join(COLOURS[: self._shape.choices])
        return f"The {self._rooms[self._passed]} room. Doors: {doors}."


def toy_tasks(
    doors: int = 2, choices: int = 4, corridor: int = 0, count: int = 16, split: str = "train"
) -> list[Task]:
    """`count` tasks of one type; each split has its own variations."""
    offset = {"train": 0, "L0": 256, "L1": 320, "L2": 384}[split]
    name = f"doors-{doors}x{choices}" + (f"+{corridor}" if corridor else "")
    _shape(name)
    limit = 256 if split == "train" else 64
    if count > limit:
        raise UserError(f"The toy split {split} has {limit} tasks of a type, not {count}.")
    return [Task("toy", name, offset + i, split=split) for i in range(count)]


def toy_tasks_of_type(name: str, split: str) -> list[Task]:
    """All tasks of a split of the type `name`, e.g. "doors-2x4+1"."""
    doors, choices, corridor = _shape(name)
    return toy_tasks(doors, choices, corridor, 256 if split == "train" else 64, split)


def solution(task: Task) -> list[str]:
    """The shortest actions that succeed."""
    shape = _shape(task.type)
    actions = []
    for room in rooms(task):
        actions += ["go on"] * shape.corridor + [f"open {right_door(room, shape.choices)}"]
    return actions


def rooms(task: Task) -> tuple[str, ...]:
    """Names of the critical rooms of a task."""
    digits = _hash(f"{task.type} {task.variation} {task.seed}")
    return tuple(
        ROOMS[digits // len(ROOMS) ** i % len(ROOMS)] for i in range(_shape(task.type).doors)
    )


def right_door(room: str, choices: int) -> str:
    """Colour of the right door of a room, the same in every task."""
    return COLOURS[(_hash("door") + ROOMS.index(room)) % choices]


@functools.cache
def _shape(name: str) -> _Shape:
    match = re.fullmatch(r"doors-([1-9]\d*)x([2-8])(?:\+(\d+))?", name)
    if not match:
        raise UserError(
            f"The toy environment has no task type {name!r}: use doors-KxC, e.g. doors-2x4 "
            "(2 doors to pass, 4 to choose from, at most 8)."
        )
    return _Shape(int(match[1]), int(match[2]), int(match[3] or 0))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")
