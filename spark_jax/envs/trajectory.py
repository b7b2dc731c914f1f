"""An expert's episode: what it did, saw and thought. Made by the experts of all environments."""

from __future__ import annotations

import dataclasses
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
