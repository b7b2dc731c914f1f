"""Expert trajectories of ScienceWorld for the warm-up, with reasoning and explore tags.

The game's own solution (gold path) of a train task is made natural, played in the real game and
kept when it reaches 100 within 30 steps. `annotate` then gives each step a short sentence that
uses only what was seen so far, and marks the real choices with `<explore>`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import logging
import queue
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from spark_jax.envs.scienceworld.annotate import annotate
from spark_jax.envs.scienceworld.environment import GOLD_HEAP_MB, ScienceWorldEnvironment, Style
from spark_jax.envs.scienceworld.rooms import Room, abbreviate, read_room
from spark_jax.envs.scienceworld.scenes import is_animal
from spark_jax.envs.trajectory import ExpertStep, Trajectory
from spark_jax.keep import keep
from spark_jax.types import Task, UserError

_log = logging.getLogger(__name__)

MAX_STEPS = 30
_RESTARTS = 3


def in_style(trajectory: Trajectory, style: Style) -> Trajectory:
    """The trajectory with the observations of a style, as the environment would give them."""
    if style == "full":
        return trajectory
    start = trajectory.start._replace(observation=abbreviate(trajectory.start.observation))
    steps = tuple(s._replace(observation=abbreviate(s.observation)) for s in trajectory.steps)
    return dataclasses.replace(trajectory, start=start, steps=steps)


# ---- playing gold paths


def gold_paths(
    tasks: Sequence[Task],
    workers: int = 2,
    cache: str | Path | None = None,
    on_done: Callable[[int, int], None] | None = None,
    style: Style = "full",
    simplification: str = "easy",
) -> list[Trajectory]:
    """Annotated expert trajectories of train tasks, in the order of `tasks`.

    A task that occurs twice is played once and returned twice; tasks without a solution of score
    100 within 30 steps are left out, so the list may be shorter.

    Args:
        workers: games played at the same time (a JVM of up to 450 MB each).
        cache: a folder that keeps the gold actions (planning takes half of the time).
        on_done: called with (tasks done, tasks in all).
        style: of the observations.
        simplification: of the game (`ScienceWorldEnvironment`).

    Raises UserError for a task of another split (held-out tasks must not be trained on).
    """
    for task in tasks:
        if task.split != "train":
            raise UserError(
                f"Expert paths are made for train tasks only, not for {task.type} "
                f"{task.variation} of split {task.split}."
            )
    todo = list(dict.fromkeys(tasks))
    make_env = functools.partial(ScienceWorldEnvironment, simplification, heap_mb=GOLD_HEAP_MB)
    gold = _GoldCache(Path(cache) if cache else None, simplification)
    jobs: queue.SimpleQueue[Task] = queue.SimpleQueue()
    finished: queue.SimpleQueue[tuple[Task, Trajectory | None | BaseException]] = (
        queue.SimpleQueue()
    )
    for task in todo:
        jobs.put(task)
    stop = threading.Event()
    threads = [
        threading.Thread(
            target=_play_jobs, args=(make_env, jobs, finished, gold, stop), daemon=True
        )
        for _ in range(min(workers, len(todo)))
    ]
    for thread in threads:
        thread.start()
    found: dict[Task, Trajectory | None] = {}
    try:
        for i in range(len(todo)):
            task, result = finished.get()
            if isinstance(result, BaseException):
                raise result
            found[task] = result
            if on_done:
                on_done(i + 1, len(todo))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        gold.save()
    return [in_style(annotate(found[task]), style) for task in tasks if found[task]]


def _play_jobs(make_env, jobs, finished, gold: _GoldCache, stop: threading.Event) -> None:
    """The life of one worker thread."""
    env = None
    try:
        while not stop.is_set():
            try:
                task = jobs.get_nowait()
            except queue.Empty:
                return
            for attempt in range(_RESTARTS + 1):
                try:
                    env = env or make_env()
                    actions = gold.get(task)
                    if actions is None:
                        actions = gold.put(task, env.gold_actions(task))
                    finished.put((task, play(env, task, actions)))
                    break
                except UserError as error:
                    finished.put((task, error))
                    return
                except Exception as error:
                    if env:
                        env.close()
                    env = None
                    _log.warning("a game died while its gold path was made: %s", error)
                    if attempt == _RESTARTS:
                        message = f"The game of {task.type} {task.variation} dies every time"
                        finished.put((task, UserError(f"{message} ({error!r}): see its log.")))
                        return
    finally:
        if env:
            env.close()


def play(env: ScienceWorldEnvironment, task: Task, gold: Sequence[str]) -> Trajectory | None:
    """Play a gold path the natural way, or else word by word; None unless it reaches 100 in time.

    Natural: no opening of open doors, no second look at the same scene, a look before something is
    chosen that was not seen yet, and things called what the game shows ("turtle egg", not "egg
    turtle in inventory").
    """
    plan = natural_actions(gold)
    verbatim: set[int] = set()  # places in the plan where only the game's own words work
    for _ in range(4):
        trajectory, failed = _play_plan(env, task, plan, verbatim)
        if trajectory.score >= 100:
            return trajectory if len(trajectory.steps) <= MAX_STEPS else None
        if failed is None:
            break
        verbatim.add(failed)
    trajectory, _ = _play_plan(env, task, list(gold), set(range(len(gold))))
    good = trajectory.score >= 100 and len(trajectory.steps) <= MAX_STEPS
    return trajectory if good else None


def natural_actions(gold: Sequence[str]) -> list[str]:
    """Gold actions without those that do nothing: opening doors (all are open in "easy"), taking
    what is held already, pouring a thing into itself, examining what is known."""
    actions = []
    held: set[str] = set()
    for action in gold:
        verb, _, rest = action.partition(" ")
        if re.match(r"open door to |examine ", action):
            continue
        if match := re.fullmatch(r"pour (.*) into (.*)", action):
            if match[1] == match[2]:
                continue
        if match := re.fullmatch(r"pick up (.*)", action):
            if match[1] in held:
                continue
            held.add(match[1])
        elif match := re.fullmatch(r"(?:move (.*) to .*|put down (.*))", action):
            held.discard(match[1] or match[2])
        # Both spellings occur in gold paths; one is easier to learn.
        actions.append(re.sub(r"^(connect .* to )(.*) (anode|cathode)$", r"\1\3 in \2", action))
    return actions


def _play_plan(
    env: ScienceWorldEnvironment, task: Task, plan: list[str], verbatim: set[int]
) -> tuple[Trajectory, int | None]:
    """Play a plan; also says at which place our own words were not understood, if so."""
    start = env.start(task)
    room: Room | None = read_room(start.observation)
    fresh = True  # nothing changed since the room was described
    held: list[str] = []
    steps: list[ExpertStep] = []
    score = 0.0

    def step(action: str):
        nonlocal room, fresh, score
        result = env.step(action)
        score = result.score
        steps.append(ExpertStep(action, result.observation))
        if seen := read_room(result.observation):
            room, fresh = seen, True
        elif re.match(r"(?:go|teleport) to ", action):
            room, fresh = None, False
        elif not re.match(r"pick up |read |focus on |look |inventory", action):
            fresh = False
        return result

    for i, action in enumerate(plan):
        if i not in verbatim:
            if action == "look around" and fresh:
                continue
            if action.startswith("focus on ") and room is None and step("look around").done:
                break
            action = _shown_name(action, task, room, held)
        result = step(action)
        if not result.valid and i not in verbatim:
            return Trajectory(task, start, tuple(steps), 0.0), i
        if match := re.fullmatch(r"pick up (.*)", action):
            held.append(match[1])
        if result.done:
            break
    return Trajectory(task, start, tuple(steps), score), None


def _shown_name(action: str, task: Task, room: Room | None, held: list[str]) -> str:
    """The action with its first thing called what the game shows in the room or in our hands."""
    match = re.fullmatch(r"(focus on |pick up |move )(.*?)( to .*|$)", action)
    if not match:
        return action
    verb, name, rest = match[1], match[2], match[3]
    held_thing = name.endswith(" in inventory")
    words = set(name.removesuffix(" in inventory").split())
    things = held if held_thing else (room.things if room else ())
    fits = [thing for thing in things if words <= set(thing.split())]
    if len(fits) == 1:
        return f"{verb}{fits[0]}{rest}"
    if task.type == "find-non-living-thing" and room and name not in room.things:
        # Gold may name a kind ("object"); any lifeless thing is right, so take the first shown.
        lifeless = [t for t in room.things if not t.endswith("box") and not is_animal(t)]
        if lifeless:
            return f"{verb}{lifeless[0]}{rest}"
    return action


class _GoldCache:
    """Gold actions by task, kept in one JSON file per version and simplification of the game."""

    def __init__(self, folder: Path | None, simplification: str):
        self._lock = threading.Lock()
        self._actions: dict[str, list[str]] = {}
        self._changed = False
        self._path = None
        if folder:
            version = importlib.metadata.version("scienceworld")
            kind = re.sub(r"\W+", "-", simplification) or "plain"
            self._path = folder / f"gold_paths_{version}_{kind}.json"
            with contextlib.suppress(OSError, ValueError):  # no file, or a broken one: plan again
                self._actions = dict(json.loads(self._path.read_text()))

    def get(self, task: Task) -> list[str] | None:
        return self._actions.get(f"{task.type} {task.variation}")

    def put(self, task: Task, actions: list[str]) -> list[str]:
        with self._lock:
            self._actions[f"{task.type} {task.variation}"] = actions
            self._changed = True
        return actions

    def save(self) -> None:
        if not (self._path and self._changed):
            return
        with contextlib.suppress(OSError):  # a full disk: they are planned again next time
            keep(self._path, json.dumps(self._actions, indent=0, sort_keys=True).encode())
