"""A bounded pool of environments that plays the steps of many paths.

A path is known by a key of the caller. It holds one worker from its first job until `rename` or
`release`. All book-keeping happens on the caller's thread and depends only on the order of calls:
which path gets a worker, and in which order waiting paths follow, never on how long steps take.
Only the playing itself happens in one thread per worker.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Hashable
from typing import Literal

from spark_jax.envs.base import Environment
from spark_jax.envs.copies import Copies
from spark_jax.types import PastStep, Start, StepResult, Task, UserError

_log = logging.getLogger(__name__)

# The largest default environment, a JVM of ScienceWorld, takes 167 MB (docs/environments.md).
ENV_BYTES = 200e6
MOST_BYTES = 8e9  # all environments together, unless env.workers says how many

_RESTARTS = 3  # fresh environments tried for one job when environments die
_MISMATCH_RETRIES = 2  # fresh environments tried for one job when a replay differs
BROKEN = "The game broke down."  # what is observed after an action that ends every environment


class ReplayMismatch(UserError):
    """A replayed step did not bring the observation that it brought before."""


class EnvironmentDied(UserError):
    """An environment died again and again on the same job."""


@dataclasses.dataclass(frozen=True)
class _Job:
    number: int  # in submission order
    key: Hashable
    task: Task
    past: tuple[PastStep, ...]
    action: str | None


@dataclasses.dataclass
class _Done:
    job: _Job
    result: Start | StepResult | None = None
    error: BaseException | None = None
    stats: collections.Counter = dataclasses.field(default_factory=collections.Counter)


@dataclasses.dataclass
class _Path:
    """What the caller's thread knows about a path that holds a worker."""

    worker: int
    task: Task
    past: tuple[PastStep, ...]  # what the environment has played once the last job is collected
    running: _Job | None


class EnvPool:
    """See the module. Use as a context manager, or call `close`.

    Args:
        make_env: makes one environment; called in the worker's thread, when first needed.
        workers: how many environments live at most (at least 1; one is enough for any tree).

    An action that ends several fresh environments, each of which had replayed what came before it,
    ends its path: it is answered with BROKEN, invalid and done. In a worker that has never played
    any action it is an error.

    `stats` counts `env_steps` (new steps), `replay_steps`, `replay_mismatches`, `worker_restarts`,
    `broken_actions`, `loads` (tasks started), `step_seconds` (time inside environments, all workers
    together) and `remembered_steps` (only in front of it: envs/remember.py).
    """

    def __init__(self, make_env: Callable[[], Environment], workers: int):
        if workers < 1:
            raise UserError(f"env.workers is {workers} but must be at least 1.")
        self.stats = {
            "env_steps": 0,
            "replay_steps": 0,
            "replay_mismatches": 0,
            "worker_restarts": 0,
            "broken_actions": 0,
            "loads": 0,
            "remembered_steps": 0,
            "step_seconds": 0.0,
        }
        self._finished: queue.SimpleQueue[_Done] = queue.SimpleQueue()
        starts: dict[Task, Start] = {}  # the first text of each task, to check later starts with
        copies = Copies()
        self._workers = [_Worker(make_env, self._finished, starts, copies) for _ in range(workers)]
        self._free = list(range(workers))[::-1]
        self._paths: dict[Hashable, _Path] = {}
        self._waiting: collections.deque[_Job] = collections.deque()
        self._uncollected: dict[int, _Done] = {}
        self._submitted = 0

    def submit(
        self,
        key: Hashable,
        task: Task,
        past: tuple[PastStep, ...] = (),
        action: str | None = None,
    ) -> None:
        """Play `action` after the steps `past` of `task`; None only starts the task.

        If `key` holds a worker, its environment is in that state already; otherwise the job waits
        (first in, first out) for a free worker, which starts the task, replays `past` and checks
        every observation, or takes a copy of an environment that stood there (envs/copies.py).
        Raises ValueError when the path is not where `past` says, or still busy.
        """
        past = tuple(past)
        job = _Job(self._submitted, key, task, past, action)
        path = self._paths.get(key)
        if path is None:
            if any(waiting.key == key for waiting in self._waiting):
                raise ValueError(f"path {key!r} has a waiting job already")
            self._submitted += 1
            self._waiting.append(job)
            self._assign()
            return
        if path.running:
            raise ValueError(f"path {key!r} is still busy: collect its result first")
        if (path.task, path.past) != (task, past):
            raise ValueError(f"path {key!r} has not played the {len(past)} steps it is said to")
        self._submitted += 1
        path.running = job
        self._workers[path.worker].jobs.put(job)

    def collect(
        self, wait: Literal["all", "any", "none"] = "all"
    ) -> list[tuple[Hashable, Start | StepResult]]:
        """Results of finished jobs in the order of submission.

        "all" waits for every job that has a worker, "any" for at least one of them (if there is
        one), "none" for nothing. Raises what a job raised: UserError from the environment,
        ReplayMismatch, or EnvironmentDied.
        """
        if wait not in ("all", "any", "none"):
            raise ValueError(f"wait must be 'all', 'any' or 'none', not {wait!r}")
        running = sum(path.running is not None for path in self._paths.values())
        missing = running - len(self._uncollected)
        while missing and (wait == "all" or (wait == "any" and not self._uncollected)):
            self._note(self._finished.get())
            missing -= 1
        while missing and not self._finished.empty():
            self._note(self._finished.get())
            missing -= 1
        finished = [self._uncollected[number] for number in sorted(self._uncollected)]
        for done in finished:
            if done.error:  # the results of the others stay for the next call
                del self._uncollected[done.job.number]
                self._paths[done.job.key].running = None
                raise done.error
        self._uncollected.clear()
        for done in finished:
            path = self._paths[done.job.key]
            path.running = None
            if done.job.action is not None:
                path.past = (*path.past, PastStep(done.job.action, done.result.observation))
        return [(done.job.key, done.result) for done in finished]

    def rename(self, old_key: Hashable, new_key: Hashable) -> None:
        """The path `old_key` goes on under `new_key`, with its worker if it holds one."""
        if old_key not in self._paths:
            return
        if new_key != old_key and new_key in self._paths:
            raise ValueError(f"path {new_key!r} holds a worker already")
        if self._paths[old_key].running:
            raise ValueError(f"path {old_key!r} is still busy: collect its result first")
        self._paths[new_key] = self._paths.pop(old_key)

    def release(self, key: Hashable) -> None:
        """The path ended: its worker goes to the first waiting job. Its own waiting job, if any,
        is dropped; a path that holds nothing is fine."""
        self._waiting = collections.deque(job for job in self._waiting if job.key != key)
        path = self._paths.get(key)
        if path is None:
            return
        if path.running:
            raise ValueError(f"path {key!r} is still busy: collect its result first")
        del self._paths[key]
        self._free.append(path.worker)
        self._assign()

    @property
    def workers(self) -> int:
        """How many environments live at most."""
        return len(self._workers)

    def is_busy(self, key: Hashable) -> bool:
        """Whether the path has a job that waits, is played or was not collected yet."""
        path = self._paths.get(key)
        return bool(path.running) if path else any(job.key == key for job in self._waiting)

    def pending(self) -> int:
        """Jobs that have a worker and whose result was not collected yet."""
        return sum(path.running is not None for path in self._paths.values())

    def waiting(self) -> int:
        """Jobs that wait for a worker."""
        return len(self._waiting)

    def close(self) -> None:
        """End all environments; jobs that are still running are finished first."""
        for worker in self._workers:
            worker.jobs.put(None)
        for worker in self._workers:
            worker.thread.join()

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _assign(self) -> None:
        while self._free and self._waiting:
            job = self._waiting.popleft()
            path = _Path(self._free.pop(), job.task, job.past, job)
            self._paths[job.key] = path
            self._workers[path.worker].jobs.put(job)

    def _note(self, done: _Done) -> None:
        self._uncollected[done.job.number] = done
        for name, value in done.stats.items():
            self.stats[name] += value


class _Worker:
    """One environment in one thread. Everything here runs in that thread."""

    def __init__(
        self, make_env, finished: queue.SimpleQueue, starts: dict[Task, Start], copies: Copies
    ):
        self.jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._make_env = make_env
        self._finished = finished
        self._starts = starts
        self._copies = copies
        self._env: Environment | None = None
        self._at: tuple[Task, tuple[PastStep, ...]] | None = None  # state of the environment
        self._acting = False  # in the new action of a job, everything before it done
        self._played = False  # whether any action was ever answered
        self.thread = threading.Thread(target=self._run, name="environment", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while (job := self.jobs.get()) is not None:
            done = _Done(job)
            try:
                done.result = self._play_surely(job, done.stats)
            except BaseException as error:
                done.error = error
                self._drop()
            self._finished.put(done)
        self._drop()

    def _play_surely(self, job: _Job, stats: collections.Counter) -> Start | StepResult:
        died = differed = acting = 0
        while True:
            self._acting = False
            try:
                return self._play(job, stats)
            except ReplayMismatch as error:
                differed += 1
                stats["replay_mismatches"] += 1
                _log.warning("%s", error)
                if differed > _MISMATCH_RETRIES:
                    raise
            except UserError:
                raise
            except Exception as error:
                died, acting = died + 1, acting + self._acting
                if died > _RESTARTS and acting == died and self._played:
                    stats["broken_actions"] += 1
                    _log.warning(
                        "the action %r ends the environment of %s (%s): its path ends there",
                        job.action, _name(job.task), _first_line(error),
                    )  # fmt: skip
                    self._drop()
                    return StepResult(BROKEN, 0.0, True, False, False)
                if died > _RESTARTS:
                    raise EnvironmentDied(
                        f"The environment of {_name(job.task)} died {died} times at step "
                        f"{len(job.past) + 1} (last: {_first_line(error)}): check the memory of "
                        "this machine, or use fewer env.workers."
                    ) from error
                stats["worker_restarts"] += 1
                _log.warning("an environment died and is replaced: %s", _first_line(error))
            self._drop()

    def _play(self, job: _Job, stats: collections.Counter) -> Start | StepResult:
        began = time.perf_counter()
        try:
            if self._env is None:
                self._env = self._make_env()
            # A job with no past starts its task anew even where the environment just did.
            if job.action is None:
                return self._replay(job, stats)
            if self._at != (job.task, job.past) and not self._copied(job):
                self._replay(job, stats)
            self._at, self._acting = None, True
            result = self._env.step(job.action)
            self._played = True
            stats["env_steps"] += 1
            self._at = (job.task, (*job.past, PastStep(job.action, result.observation)))
            self._copies.keep(self._at, self._env)
            return result
        finally:
            stats["step_seconds"] += time.perf_counter() - began

    def _copied(self, job: _Job) -> bool:
        """Whether a kept state could take the place of a replay."""
        copy = self._copies.take((job.task, job.past))
        if copy is None:
            return False
        self._env.close()
        self._env = copy
        return True

    def _replay(self, job: _Job, stats: collections.Counter) -> Start:
        self._at = None
        start = self._env.start(job.task)
        stats["loads"] += 1
        expected = self._starts.setdefault(job.task, start)
        if start != expected:
            raise _mismatch(job.task, 0, expected.observation, start.observation)
        for number, (action, observation) in enumerate(job.past, 1):
            seen = self._env.step(action).observation
            self._played = True
            stats["replay_steps"] += 1
            if seen != observation:
                raise _mismatch(job.task, number, observation, seen)
        self._at = (job.task, job.past)
        self._copies.keep(self._at, self._env)
        return start

    def _drop(self) -> None:
        env, self._env, self._at = self._env, None, None
        if env is not None:
            try:
                env.close()
            except Exception as error:  # it may be dead already
                _log.warning("closing an environment failed: %s", _first_line(error))


def default_workers(each: float = ENV_BYTES) -> int:
    """Environments of `each` bytes that fit this machine: at most 6 per core, in half of the memory
    that is free now, and in 8 GB however large the machine is: with the model and the rest of the
    process a default run then stays below 12 GB."""
    room = min(_free_memory() / 2, MOST_BYTES)
    return max(1, min(6 * usable_cores(), int(room // each)))


def usable_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _free_memory() -> float:
    """Bytes that are free, also by the limit of the container (control group version 2)."""
    free = 4e9  # where nothing says (not Linux)
    try:
        with open("/proc/meminfo") as file:
            line = next(line for line in file if line.startswith("MemAvailable:"))
        free = int(line.split()[1]) * 1024
        with open("/sys/fs/cgroup/memory.max") as file:
            limit = file.read().strip()
        if limit != "max":
            with open("/sys/fs/cgroup/memory.current") as file:
                free = min(free, int(limit) - int(file.read()))
    except (OSError, StopIteration, ValueError):
        pass
    return max(free, 0.0)


def _mismatch(task: Task, number: int, expected: str, seen: str) -> ReplayMismatch:
    return ReplayMismatch(
        f"The replay of {_name(task)} differs at step {number}: expected {_cut(expected)!r} but "
        f"the environment says {_cut(seen)!r}; an environment must answer the same actions with "
        "the same texts."
    )


def _name(task: Task) -> str:
    return f"{task.env} {task.type} variation {task.variation}"


def _cut(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
