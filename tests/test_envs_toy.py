"""The toy environment: optimum, theory of tries at critical steps, and which tasks are drawn."""

import collections
import random

import pytest

from spark_jax.envs import tasks as task_lists
from spark_jax.envs import toy
from spark_jax.envs.pool import EnvPool
from spark_jax.types import PastStep, Task, UserError


@pytest.mark.parametrize("corridor", [0, 2])
def test_the_solution_succeeds_and_a_wrong_door_ends(corridor):
    env = toy.ToyEnvironment()
    for task in toy.toy_tasks(doors=3, choices=4, corridor=corridor, count=20):
        env.start(task)
        results = [env.step(action) for action in toy.solution(task)]
        assert [r.done for r in results] == [False] * (len(results) - 1) + [True]
        assert results[-1].success and results[-1].score == 100
        env.start(task)
        for _ in range(corridor):
            assert env.step("go on").valid
        wrong = next(c for c in toy.COLOURS[:4] if f"open {c}" not in toy.solution(task))
        nothing = env.step("open purple")
        assert not nothing.valid and not nothing.done
        end = env.step(f"open {wrong}")
        assert end.done and not end.success and end.score == 0


def test_the_right_door_can_be_learned_from_the_room():
    doors = {}
    for task in toy.toy_tasks(doors=3, count=200):
        for room, action in zip(toy.rooms(task), toy.solution(task), strict=True):
            assert doors.setdefault(room, action) == action
    assert len(doors) == len(toy.ROOMS) and len(set(doors.values())) == 4


def test_unknown_toy_task():
    with pytest.raises(UserError, match="doors-KxC"):
        toy.ToyEnvironment().start(Task("toy", "door", 0))
    with pytest.raises(UserError, match="no variation"):
        toy.ToyEnvironment().start(Task("toy", "doors-2x4", 10**6))


@pytest.mark.parametrize("tries", [1, 2, 3])
def test_tries_at_critical_steps_follow_theory(tries):
    """B guesses at each door, made as forks of the path that passed the doors before."""
    doors, choices, episodes = 2, 4, 500
    q = 1 / choices
    rng = random.Random(tries)
    reached = [0] * doors
    passed = [0] * doors
    with EnvPool(toy.ToyEnvironment, workers=2) as pool:
        for episode, task in enumerate(toy.toy_tasks(doors, choices, count=250) * 2):
            past = ()
            for door in range(doors):
                reached[door] += 1
                survivors, actions = [], {}
                for child in range(tries):
                    key = (episode, door, child)
                    action = f"open {rng.choice(toy.COLOURS[:choices])}"
                    actions[key] = action
                    pool.submit(key, task, past, action)
                while pool.pending():
                    survivors += _survivors(pool, past, actions)
                if not survivors:
                    break
                passed[door] += 1
                past = survivors[0]
    assert pool.stats["replay_mismatches"] == 0
    expected = 1 - (1 - q) ** tries
    for n, k in zip(reached, passed, strict=True):
        assert abs(k / n - expected) < 3.3 * (expected * (1 - expected) / n) ** 0.5
    whole = expected**doors  # going on with one that was right
    assert abs(passed[-1] / episodes - whole) < 3.3 * (whole * (1 - whole) / episodes) ** 0.5
    if tries > 1:
        assert passed[-1] / episodes > 2 * q**doors


def _survivors(pool, past, actions):
    """Pasts that passed one more door; every worker is given back."""
    out = []
    for key, result in pool.collect("all"):
        if result.score > 100 * len(past) / 2:
            out.append((*past, PastStep(actions[key], result.observation)))
        pool.release(key)
    return out


def test_warm_up_tasks_are_the_same_share_of_every_type():
    groups = {
        name: [Task("toy", name, i) for i in range(count)]
        for name, count in {"a": 100, "b": 50, "c": 6}.items()
    }
    drawn = task_lists.distinct_tasks(groups, 78, seed=3)
    assert len(set(drawn)) == 78
    counts = {name: sum(task.type == name for task in drawn) for name in groups}
    assert abs(counts["a"] - 50) <= 1 and abs(counts["b"] - 25) <= 1 and abs(counts["c"] - 3) <= 1
    assert drawn == task_lists.distinct_tasks(groups, 78, seed=3)
    assert drawn != task_lists.distinct_tasks(groups, 78, seed=4)
    assert drawn[:20] == task_lists.distinct_tasks(groups, 20, seed=3)  # more of the same
    everything = task_lists.distinct_tasks(groups, 1000, seed=3)
    assert sorted(everything, key=str) == sorted(sum(groups.values(), []), key=str)


def test_unseen_tasks():
    groups = {name: [Task("toy", name, i) for i in range(3)] for name in "ab"}
    left = task_lists.unseen(groups, [groups["a"][0], *groups["b"]])
    assert left == {"a": groups["a"][1:], "b": groups["b"]}  # nothing new in b: all of it


def test_tasks_of_iteration():
    groups = task_lists.by_type(
        [Task("e", "big", v) for v in range(50)] + [Task("e", "small", v) for v in range(3)]
    )
    drawn = task_lists.tasks_of_iteration(groups, 16, seed=1, iteration=4)
    assert drawn == task_lists.tasks_of_iteration(groups, 16, seed=1, iteration=4)
    assert drawn != task_lists.tasks_of_iteration(groups, 16, seed=1, iteration=5)
    assert drawn != task_lists.tasks_of_iteration(groups, 16, seed=2, iteration=4)
    big = [task for task in drawn if task.type == "big"]
    assert len(set(big)) == len(big)
    many = task_lists.tasks_of_iteration(groups, 400, seed=1, iteration=0)
    by_type = collections.Counter(task.type for task in many)
    assert 150 < by_type["small"] < 250  # types uniform, though one has few variations
    small = collections.Counter(task for task in many if task.type == "small")
    assert max(small.values()) - min(small.values()) <= 1  # exhausted before it repeats
    with pytest.raises(UserError):
        task_lists.tasks_of_iteration({"none": []}, 1, 0, 0)


def test_panel():
    split = [Task("e", "t", v) for v in range(100)]
    panel = task_lists.panel(split, 30, seed=0)
    assert panel == task_lists.panel(split, 30, seed=0) == sorted(panel)
    assert len(set(panel)) == 30 and panel != task_lists.panel(split, 30, seed=1)
    assert task_lists.panel(split, 100, seed=0) == task_lists.panel(split, 500, seed=0) == split
