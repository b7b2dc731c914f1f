"""States of environments that can be copied: a fork copies the state instead of a replay."""

from __future__ import annotations

import collections
import threading

from spark_jax.envs.base import Environment
from spark_jax.types import PastStep, Task

MOST = 4096  # states kept: the newest of 16 trees of 8 leaves and 32 steps

State = tuple[Task, tuple[PastStep, ...]]  # what was played to get there


class Copies:
    """The newest `most` states of environments that have a `copy`; of others none is kept. Used by
    the threads of all workers."""

    def __init__(self, most: int = MOST):
        self._most = most
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[State, Environment] = collections.OrderedDict()

    def keep(self, state: State, environment: Environment) -> None:
        """`environment` is in that state now."""
        copy = getattr(environment, "copy", None)
        if copy is None:
            return
        kept = copy()
        with self._lock:
            self._kept[state] = kept
            self._kept.move_to_end(state)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def take(self, state: State) -> Environment | None:
        """An environment in that state, the caller's own; None if none is kept."""
        with self._lock:
            kept = self._kept.get(state)
        return kept.copy() if kept is not None else None
