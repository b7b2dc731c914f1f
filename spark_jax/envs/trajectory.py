"""An expert's episode: what it did, saw and thought. Made by the experts of all environments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from spark_jax.types import Start, Task


class ExpertStep(NamedTuple):
    """One step of an expert."""

    action: str
    observation: str
    reasoning: str = ""
    explore: bool = False
    # Other actions worth a try at the choice that an explore step stands at: instead of its own
    # action or, where it is the last step before the choice, instead of the next one.
    alternatives: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """An expert's episode."""

    task: Task
    start: Start
    steps: tuple[ExpertStep, ...]
    score: float


def winning_paths(
    play: Callable[[Task], Trajectory],
    tasks: Sequence[Task],
    max_steps: int,
    on_done: Callable[[int, int], None],
) -> list[Trajectory]:
    """What an expert that plays tasks wins, with the full score and within `max_steps`."""
    out = []
    for i, task in enumerate(tasks, 1):
        path = play(task)
        if path.score >= 100.0 and len(path.steps) <= max_steps:
            out.append(path)
        on_done(i, len(tasks))
    return out
