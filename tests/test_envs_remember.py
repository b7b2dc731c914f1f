"""The memory in front of the pool: equal answers, fewer plays, no path left waiting."""

import random

import pytest
from test_envs_pool import OTHER, TASK, SlowToy, flaky, played

from spark_jax.envs import toy
from spark_jax.envs.pool import EnvironmentDied, EnvPool
from spark_jax.envs.remember import RememberingPool
from spark_jax.types import PastStep, Start, Task, UserError

ACTIONS = toy.solution(TASK)


def walk(pool, paths, release=True):
    """Plays `paths` (key -> (task, actions)) to their ends; every event in order."""
    events, pasts = [], dict.fromkeys(paths, ())
    for key, (task, actions) in paths.items():
        pool.submit(key, task, (), actions[0])
    left = set(paths)
    while left:
        found = [*pool.remembered(), *pool.collect("all")]
        assert found, f"nothing happens any more, but {left} are not at their ends"
        for key, result in found:
            task, actions = paths[key]
            events.append((key, len(pasts[key]), result))
            pasts[key] += (PastStep(actions[len(pasts[key])], result.observation),)
            if len(pasts[key]) == len(actions):
                left.remove(key)
                if release:
                    pool.release(key)
            else:
                pool.submit(key, task, pasts[key], actions[len(pasts[key])])
    return events, pasts


def test_paths_that_do_the_same_are_played_once():
    with EnvPool(toy.ToyEnvironment, workers=2) as plain:
        pool = RememberingPool(plain)
        events, pasts = walk(pool, {i: (TASK, ACTIONS) for i in range(5)})
        assert plain.stats["loads"] == 1 and plain.stats["replay_steps"] == 0
        assert plain.stats["env_steps"] == len(ACTIONS)
        assert plain.stats["remembered_steps"] == 4 * len(ACTIONS)
    assert set(pasts.values()) == {played(ACTIONS)}
    assert all(result.success == (step == len(ACTIONS) - 1) for _, step, result in events)


def test_a_path_is_started_where_it_leaves_the_others():
    other_way = (*ACTIONS[:2], "open pink")
    with EnvPool(toy.ToyEnvironment, workers=2) as plain:
        pool = RememberingPool(plain)
        _, pasts = walk(pool, {"first": (TASK, ACTIONS), "leaves": (TASK, other_way)})
        assert pasts["leaves"] == played(other_way)
        assert plain.stats["loads"] == 2 and plain.stats["replay_steps"] == 2
        assert plain.stats["env_steps"] == len(ACTIONS) + 1
        assert plain.stats["remembered_steps"] == 2


def test_a_path_with_an_environment_plays_what_others_know():
    """A step costs less than the start that would be due once it leaves the others."""
    with EnvPool(toy.ToyEnvironment, workers=2) as plain:
        pool = RememberingPool(plain)
        for key in "ab":
            pool.submit(key, TASK if key == "a" else OTHER)
        pool.collect()
        assert plain.stats["loads"] == 2
        pool.submit("a", TASK, (), ACTIONS[0])
        pool.submit("c", TASK, (), ACTIONS[0])
        pool.collect()
        pool.release("b")
        pool.submit("c", TASK, played(ACTIONS[:1]), "open pink")  # leaves, and takes the worker
        pool.submit("a", TASK, played(ACTIONS[:1]), ACTIONS[1])
        pool.collect()
        pool.submit("c", TASK, played([ACTIONS[0], "open pink"]), ACTIONS[1])
        pool.collect()
        assert plain.stats["loads"] == 3
        assert plain.stats["env_steps"] == 4 and plain.stats["remembered_steps"] == 1


def test_starts_are_remembered_too_and_other_tasks_are_not_mixed_up():
    with EnvPool(toy.ToyEnvironment, workers=1) as plain:
        pool = RememberingPool(plain)
        pool.submit(1, TASK)
        [(_, first)] = pool.collect()
        pool.release(1)
        pool.submit(2, TASK)
        assert pool.collect("any") == [(2, first)] and isinstance(first, Start)
        pool.submit(3, OTHER)
        pool.collect()
        assert plain.stats["loads"] == 2
        assert plain.stats["remembered_steps"] == 0


def random_paths(seed, count=24):
    """Paths of two tasks that begin alike and part somewhere, as those of a policy do."""
    rng, paths = random.Random(seed), {}
    for i in range(count):
        task = (TASK, OTHER)[i % 2]
        actions = list(toy.solution(task))[: rng.randint(1, 9)]
        for at in range(len(actions)):
            if rng.random() < 0.15:
                actions[at] = rng.choice(("look", "open pink", "open red"))
        paths[i] = (task, until_done(task, actions))
    return paths


def until_done(task, actions):
    env = toy.ToyEnvironment()
    env.start(task)
    for n, action in enumerate(actions, 1):
        if env.step(action).done:
            return tuple(actions[:n])
    return tuple(actions)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("workers", [1, 3])
def test_every_path_gets_what_an_environment_of_its_own_says(seed, workers):
    paths = random_paths(seed)
    with EnvPool(toy.ToyEnvironment, workers) as plain:
        _, pasts = walk(RememberingPool(plain), paths)
        quick = dict(plain.stats)
    for key, (task, actions) in paths.items():
        assert pasts[key] == played(actions, task)
    steps = sum(len(actions) for _, actions in paths.values())
    assert quick["env_steps"] + quick["remembered_steps"] == steps
    assert quick["loads"] < len(paths) and quick["replay_mismatches"] == 0


def test_what_is_played_does_not_depend_on_time():
    found = []
    for kind in (toy.ToyEnvironment, SlowToy, SlowToy):
        with EnvPool(kind, workers=3) as plain:
            events, _ = walk(RememberingPool(plain), random_paths(5))
            stats = {k: v for k, v in plain.stats.items() if k != "step_seconds"}
            found.append((events, stats))
    assert found[0] == found[1] == found[2]


def test_a_follower_plays_itself_when_its_leader_is_released_or_fails():
    with EnvPool(toy.ToyEnvironment, workers=1) as plain:
        pool = RememberingPool(plain)
        pool.submit("holds the worker", OTHER)
        pool.submit("leads", TASK, (), "go on")  # waits for a worker
        pool.submit("follows", TASK, (), "go on")
        pool.submit("follows too", TASK, (), "go on")
        pool.release("leads")
        pool.collect()
        pool.release("holds the worker")
        assert [key for key, _ in pool.collect()] == ["follows", "follows too"]
        assert plain.stats["remembered_steps"] == 1
    with EnvPool(flaky({1, 2, 3, 4}), workers=1) as plain:
        pool = RememberingPool(plain)
        pool.submit("leads", TASK, (), "go on")
        pool.submit("follows", TASK, (), "go on")
        with pytest.raises(EnvironmentDied):
            pool.collect()
        pool.release("leads")
        assert [key for key, _ in pool.collect()] == ["follows"]


def test_an_error_keeps_what_was_remembered():
    with EnvPool(toy.ToyEnvironment, workers=2) as plain:
        pool = RememberingPool(plain)
        pool.submit(1, TASK, (), "go on")
        pool.collect()
        pool.submit(2, TASK, (), "go on")
        pool.submit(3, Task("toy", "no such", 0))
        with pytest.raises(UserError, match="no such"):
            pool.collect()
        assert [key for key, _ in pool.collect()] == [2]
        assert plain.stats["remembered_steps"] == 1


def test_misuse_is_refused():
    with EnvPool(toy.ToyEnvironment, workers=1) as plain:
        pool = RememberingPool(plain)
        pool.submit("leads", TASK, (), "go on")
        pool.submit("follows", TASK, (), "go on")
        for refused in (lambda: pool.submit("follows", TASK), lambda: pool.rename("follows", 7)):
            with pytest.raises(ValueError, match="busy"):
                refused()
        pool.collect()
        pool.rename("follows", "goes on")
        pool.submit("goes on", TASK, played(["go on"]), "go on")
        assert [key for key, _ in pool.collect()] == []  # the only worker is held by the other
        pool.release("leads")
        assert [key for key, _ in pool.collect()] == ["goes on"]
        assert plain.stats["replay_steps"] == 0  # the worker happens to be there
