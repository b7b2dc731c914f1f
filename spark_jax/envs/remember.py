"""Paths of one task begin alike; what one of them has played is not played again for the others.

In front of an `EnvPool`, with its interface. The same actions bring the same texts
(`Environment`), so a path needs an environment of its own only from the step on at which it does
something that no other has done: until then it is answered from memory, or waits for the path that
is playing the same step just now. When it leaves the others it gets a worker as a fork does,
by a start and a checked replay. A path that never leaves them costs nothing.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal, NamedTuple

from spark_jax.envs.pool import EnvPool
from spark_jax.types import PastStep, Start, StepResult, Task


class _Play(NamedTuple):
    """What is asked of the environment."""

    task: Task
    past: tuple[PastStep, ...]
    action: str | None


class _Job(NamedTuple):
    number: int  # in submission order
    play: _Play


class RememberingPool:
    """See the module. What it remembers lives as long as it does; the pool is not closed by it.

    Which paths get a worker depends only on the order of calls, as in the pool. Its stats get
    `remembered_steps`: answers that no environment had to give.
    """

    def __init__(self, pool: EnvPool):
        self._pool = pool
        self._memory: dict[_Play, Start | StepResult] = {}
        self._submitted = 0
        self._in_pool: dict[Hashable, _Job | None] = {}  # paths the pool knows, and what they play
        self._leaders: dict[_Play, Hashable] = {}  # who of them plays what
        self._followers: dict[Hashable, _Job] = {}  # wait for a leader's answer
        self._answered: dict[Hashable, _Job] = {}  # remembered, not collected yet

    def submit(
        self,
        key: Hashable,
        task: Task,
        past: tuple[PastStep, ...] = (),
        action: str | None = None,
    ) -> None:
        """As `EnvPool.submit`."""
        if key in self._followers or key in self._answered:
            raise ValueError(f"path {key!r} is still busy: collect its result first")
        job = _Job(self._submitted, _Play(task, tuple(past), action))
        if key in self._in_pool:  # its environment is there already: a step costs less than a start
            self._hand_on(key, job)
        elif job.play in self._memory:
            self._answered[key] = job
        elif job.play in self._leaders:
            self._followers[key] = job
        else:
            self._hand_on(key, job)
        self._submitted += 1

    def collect(
        self, wait: Literal["all", "any", "none"] = "all"
    ) -> list[tuple[Hashable, Start | StepResult]]:
        """As `EnvPool.collect`; remembered answers are there at once."""
        try:
            played = self._pool.collect("none" if self._answered and wait == "any" else wait)
        except BaseException:
            self._forget_failed()
            raise
        found = self._take_remembered()
        for key, result in played:
            job = self._in_pool[key]
            self._in_pool[key] = None
            found[key] = (job, result)
            self._memory[job.play] = result
            if self._leaders.get(job.play) == key:
                del self._leaders[job.play]
                for follower in self._who_follows(job.play):
                    found[follower] = (self._followers.pop(follower), result)
                    self._count(job.play)
        return _in_order(found)

    def remembered(self) -> list[tuple[Hashable, Start | StepResult]]:
        """Results of jobs that nobody has to play: no worker is asked."""
        return _in_order(self._take_remembered())

    def rename(self, old_key: Hashable, new_key: Hashable) -> None:
        """As `EnvPool.rename`."""
        if old_key in self._followers or old_key in self._answered:
            raise ValueError(f"path {old_key!r} is still busy: collect its result first")
        self._pool.rename(old_key, new_key)
        if old_key in self._in_pool:
            self._in_pool[new_key] = self._in_pool.pop(old_key)

    def release(self, key: Hashable) -> None:
        """As `EnvPool.release`."""
        self._followers.pop(key, None)
        self._answered.pop(key, None)
        self._pool.release(key)
        job = self._in_pool.pop(key, None)
        if job and self._leaders.get(job.play) == key:  # it was still waiting for a worker
            self._replace_leader(job.play)

    @property
    def workers(self) -> int:
        """As of the pool."""
        return self._pool.workers

    def waiting(self) -> int:
        """As of the pool."""
        return self._pool.waiting()

    def _hand_on(self, key: Hashable, job: _Job) -> None:
        self._pool.submit(key, *job.play)
        self._in_pool[key] = job
        self._leaders.setdefault(job.play, key)

    def _take_remembered(self) -> dict[Hashable, tuple[_Job, Start | StepResult]]:
        answered, self._answered = self._answered, {}
        for job in answered.values():
            self._count(job.play)
        return {key: (job, self._memory[job.play]) for key, job in answered.items()}

    def _count(self, play: _Play) -> None:
        self._pool.stats["remembered_steps"] += play.action is not None

    def _who_follows(self, play: _Play) -> list[Hashable]:
        return [key for key, job in self._followers.items() if job.play == play]

    def _replace_leader(self, play: _Play) -> None:
        """The first follower plays it instead."""
        del self._leaders[play]
        for key in self._who_follows(play)[:1]:
            self._hand_on(key, self._followers.pop(key))

    def _forget_failed(self) -> None:
        """After an error of the pool: what failed is played by those who waited for it."""
        for key, job in list(self._in_pool.items()):
            if job and not self._pool.is_busy(key):
                self._in_pool[key] = None
                if self._leaders.get(job.play) == key:
                    self._replace_leader(job.play)


def _in_order(found: dict) -> list[tuple[Hashable, Start | StepResult]]:
    """By submission."""
    ordered = sorted(found.items(), key=lambda item: item[1][0].number)
    return [(key, result) for key, (_, result) in ordered]
