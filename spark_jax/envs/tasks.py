"""Which tasks an iteration trains on and an evaluation plays."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

from spark_jax.types import Task, UserError


def by_type(tasks: Sequence[Task]) -> dict[str, list[Task]]:
    """Tasks grouped by their type, in order."""
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.type, []).append(task)
    return groups


def tasks_of_iteration(
    tasks_by_type: Mapping[str, Sequence[Task]],
    n: int,
    seed: int,
    iteration: int,
    weights: Mapping[str, float] | None = None,
) -> list[Task]:
    """`n` tasks: type uniform or by `weights`, then a variation without replacement.

    Depends on (seed, iteration) and the arguments only. A type whose variations are used up
    within the iteration begins again.
    """
    if not tasks_by_type or not all(tasks_by_type.values()):
        raise UserError("There is a task type without tasks to train on: check env.tasks.")
    rng = random.Random(f"tasks of iteration {seed} {iteration}")
    types = sorted(tasks_by_type)
    left: dict[str, list[Task]] = {name: [] for name in types}
    chosen = []
    for _ in range(n):
        if weights is None:
            name = rng.choice(types)
        else:
            name = rng.choices(types, [weights[name] for name in types])[0]
        if not left[name]:
            left[name] = rng.sample(list(tasks_by_type[name]), len(tasks_by_type[name]))
        chosen.append(left[name].pop())
    return chosen


def distinct_tasks(tasks_by_type: Mapping[str, Sequence[Task]], n: int, seed: int) -> list[Task]:
    """`n` tasks for the warm-up (all, if there are no more), the same share of every type, and no
    variation twice. Depends on the seed and the tasks."""
    rng = random.Random(f"warm-up tasks {seed}")
    # In this order every prefix holds each type in proportion: task i of k stands at (i + u) / k.
    placed = []
    for _, tasks in sorted(tasks_by_type.items()):
        shift = rng.random()
        drawn = rng.sample(list(tasks), len(tasks))
        placed += [((i + shift) / len(drawn), task) for i, task in enumerate(drawn)]
    placed.sort(key=lambda pair: pair[0])
    return [task for _, task in placed[:n]]


def unseen(
    tasks_by_type: Mapping[str, Sequence[Task]], seen: Iterable[Task]
) -> dict[str, list[Task]]:
    """The tasks that are not among `seen`; a type of which nothing is left keeps all of its own."""
    known = set(seen)
    left = {name: [t for t in tasks if t not in known] for name, tasks in tasks_by_type.items()}
    return {name: left[name] or list(tasks) for name, tasks in tasks_by_type.items()}


def seen(
    tasks_by_type: Mapping[str, Sequence[Task]], tasks_seen: Iterable[Task]
) -> dict[str, list[Task]]:
    """The tasks that are among `tasks_seen`, without the types of which there are none."""
    known = set(tasks_seen)
    left = {name: [t for t in tasks if t in known] for name, tasks in tasks_by_type.items()}
    return {name: tasks for name, tasks in left.items() if tasks}


def panel(tasks: Sequence[Task], episodes: int, seed: int) -> list[Task]:
    """The fixed tasks of an evaluation: `episodes` of the split, drawn uniformly without
    replacement, in the order of the split; the whole split when it has no more."""
    if episodes >= len(tasks):
        return list(tasks)
    rng = random.Random(f"panel {seed}")
    return [tasks[i] for i in sorted(rng.sample(range(len(tasks)), episodes))]
