"""What experts win: in the order of the tasks, however many play at once."""

import threading
import time

import pytest

from spark_jax.envs.toy import ToyEnvironment
from spark_jax.envs.trajectory import ExpertStep, Trajectory, winning_paths
from spark_jax.types import Start, Task

ENV = ToyEnvironment()
TASKS = [Task("toy", "x", i) for i in range(12)]


def path(task, score=100.0, steps=2):
    return Trajectory(task, Start("", ""), (ExpertStep("look", "A room."),) * steps, score)


def test_only_full_scores_within_the_limit_are_taken():
    played = {0: (100.0, 2), 1: (99.0, 2), 2: (100.0, 3), 3: (100.0, 1)}
    counts = []
    paths = winning_paths(
        lambda env, task: path(task, *played[task.variation]),
        [ENV], TASKS[:4], 2, lambda *count: counts.append(count),
    )  # fmt: skip
    assert [p.task.variation for p in paths] == [0, 3]
    assert counts == [(i, 4) for i in range(1, 5)]


def test_order_is_that_of_the_tasks():
    later = threading.Event()

    def play(env, task):
        if task.variation == 0:
            assert later.wait(10)  # another one is played meanwhile
        later.set()
        return path(task)

    paths = winning_paths(play, [ENV, ToyEnvironment()], TASKS, 2, lambda *count: None)
    assert paths == [path(task) for task in TASKS]


def test_an_error_ends_it():
    played = []

    def play(env, task):
        played.append(task)
        if task.variation == 1:
            raise RuntimeError("no such door")
        time.sleep(0.1 * (task.variation > 1))
        return path(task)

    with pytest.raises(RuntimeError, match="no such door"):
        winning_paths(play, [ENV], TASKS, 2, lambda *count: None)
    assert len(played) < len(TASKS)
