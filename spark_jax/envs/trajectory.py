"""An expert's episode: what it did, saw and thought. Made by the experts of all environments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from spark_jax.envs.base import Environment
from spark_jax.envs.response import render_response
from spark_jax.threads import in_threads
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
    play: Callable[[Environment, Task], Trajectory],
    environments: Sequence[Environment],
    tasks: Sequence[Task],
    max_steps: int,
    on_done: Callable[[int, int], None],
) -> list[Trajectory]:
    """What an expert that plays tasks wins, with the full score and within `max_steps`, in the
    order of the tasks; as many play at once as there are environments."""
    paths: dict[int, Trajectory] = {}

    def record(job: tuple[int, Task], path: Trajectory) -> None:
        paths[job[0]] = path
        on_done(len(paths), len(tasks))

    def work(environment: Environment, job: tuple[int, Task]) -> Trajectory:
        return play(environment, job[1])

    in_threads(work, list(enumerate(tasks)), environments, record)
    played = (paths[i] for i in range(len(tasks)))
    return [path for path in played if path.score >= 100.0 and len(path.steps) <= max_steps]


def rendered_turns(trajectory: Trajectory) -> tuple[tuple[str, str], ...]:
    """(response, the observation it brings) of each step."""
    return tuple(
        (render_response(step.reasoning, step.explore, step.action), step.observation)
        for step in trajectory.steps
    )
