"""What every environment offers."""

from __future__ import annotations

from typing import Protocol

from spark_jax.types import Start, StepResult, Task


class Environment(Protocol):
    """A text environment for one agent; used from one thread at a time.

    The same task and the same actions always give the same texts: a fork is a replay. One whose
    state is small may have a method `copy` that returns another in the same state: a fork is a copy
    then (envs/copies.py).
    """

    def start(self, task: Task) -> Start:
        """Begin `task` from its first state, whatever was played before.

        Raises UserError for a task that does not exist.
        """
        ...

    def step(self, action: str) -> StepResult:
        """Play one action. Not after `done`."""
        ...

    def close(self) -> None:
        """Give back all resources; may be called twice."""
        ...
