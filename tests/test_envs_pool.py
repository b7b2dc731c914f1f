"""The pool of environments, on the toy environment and on scripted failures."""

import copy
import random
import threading
import time

import pytest

from spark_jax.envs import toy
from spark_jax.envs.copies import Copies
from spark_jax.envs.pool import (
    BROKEN,
    EnvironmentDied,
    EnvPool,
    ReplayMismatch,
    default_workers,
)
from spark_jax.envs.scienceworld import expert
from spark_jax.run import worlds
from spark_jax.types import PastStep, Start, StepResult, Task, UserError

TASK = toy.toy_tasks(doors=3, choices=4, corridor=2, count=1)[0]
OTHER = toy.toy_tasks(doors=3, choices=4, corridor=2, count=2)[1]


def played(actions, task=TASK):
    """The steps that `actions` bring, from an environment outside the pool."""
    env = toy.ToyEnvironment()
    env.start(task)
    return tuple(PastStep(action, env.step(action).observation) for action in actions)


def test_a_path_is_started_played_forked_and_released():
    actions = toy.solution(TASK)
    with EnvPool(toy.ToyEnvironment, workers=2) as pool:
        pool.submit("root", TASK)
        [(key, start)] = pool.collect()
        assert key == "root" and isinstance(start, Start)
        past = ()
        for action in actions[:3]:
            pool.submit("root", TASK, past, action)
            [(_, result)] = pool.collect()
            past += (PastStep(action, result.observation),)
        assert past == played(actions[:3])
        assert pool.stats["loads"] == 1 and pool.stats["replay_steps"] == 0
        pool.rename("root", "child 0")
        pool.submit("child 0", TASK, past, "go on")
        pool.submit("child 1", TASK, past, "open pink")
        results = pool.collect()
        assert [key for key, _ in results] == ["child 0", "child 1"]
        assert results[0][1].valid and not results[1][1].valid
        assert pool.stats["replay_steps"] == 3 and pool.stats["env_steps"] == 5
        with pytest.raises(ValueError, match="not played"):
            pool.submit("child 0", TASK, past, "go on")


class Copying(toy.ToyEnvironment):
    """It can be copied."""

    def copy(self):
        return copy.copy(self)


def test_a_fork_of_what_can_be_copied_is_no_replay():
    actions = toy.solution(TASK)
    with EnvPool(Copying, workers=2) as pool:
        past = ()
        for action in actions[:2]:
            pool.submit("root", TASK, past, action)
            [(_, result)] = pool.collect()
            past += (PastStep(action, result.observation),)
        children = [actions[2], actions[2], actions[2], "open pink"]
        for key, last in enumerate(children):
            pool.release("root")
            pool.submit(key, TASK, past, last)
            [(_, result)] = pool.collect()
            assert played([*actions[:2], last])[-1].observation == result.observation
            pool.release(key)
        # The copies went their own ways: from where they started others still can.
        pool.submit("child", TASK, past[:1], "open pink")
        [(_, result)] = pool.collect()
        assert played([*actions[:1], "open pink"])[-1].observation == result.observation
        assert pool.stats["loads"] == 1 and pool.stats["replay_steps"] == 0
        pool.submit("stranger", TASK, played(["open pink"] * 2), actions[0])  # nobody was there
        pool.collect()
        assert pool.stats["loads"] == 2 and pool.stats["replay_steps"] == 2


def test_only_the_newest_states_are_kept():
    copies, env = Copies(most=2), Copying()
    for n in range(3):
        copies.keep((TASK, (PastStep("look", str(n)),)), env)
        copies.keep((TASK, (PastStep("look", "0"),)), env)  # again: the newest
    kept = [copies.take((TASK, (PastStep("look", str(n)),))) for n in range(3)]
    assert kept[1] is None and kept[0] not in (None, env) and kept[2] not in (None, env)
    plain = Copies()
    plain.keep((TASK, ()), toy.ToyEnvironment())
    assert plain.take((TASK, ())) is None


def test_one_worker_serves_a_scripted_tree_first_in_first_out():
    """Four roots, a fork each, one worker: every leaf is played, in order of submission."""
    actions = toy.solution(TASK)
    order = []
    with EnvPool(toy.ToyEnvironment, workers=1) as pool:
        for root in range(4):
            pool.submit((root,), TASK, (), actions[0])
        assert (pool.pending(), pool.waiting()) == (1, 3)
        paths = {}
        while pool.pending():
            for key, result in pool.collect("all"):
                order.append(key)
                past = paths.get(key, ())
                past += (PastStep(actions[len(past)], result.observation),)
                if len(key) == 1:  # fork: child 0 goes on at once, child 1 waits for a worker
                    pool.rename(key, (*key, 0))
                    paths[(*key, 0)] = paths[(*key, 1)] = past
                    pool.submit((*key, 0), TASK, past, actions[1])
                    pool.submit((*key, 1), TASK, past, actions[1])
                elif result.done:
                    assert result.success
                    pool.release(key)
                else:
                    paths[key] = past
                    pool.submit(key, TASK, past, actions[len(past)])
        assert (pool.pending(), pool.waiting()) == (0, 0)
        first_seen = list(dict.fromkeys(order))
        roots = [(r,) for r in range(4)]
        assert [k for k in first_seen if len(k) == 1] == roots
        assert [k for k in first_seen if k[-1] == 1 and len(k) == 2] == [(r, 1) for r in range(4)]
        assert order.count((3, 1)) == len(actions) - 1
        assert pool.stats["env_steps"] == 4 * (1 + 2 * (len(actions) - 1))
        assert pool.stats["replay_steps"] == 4


class SlowToy(toy.ToyEnvironment):
    """Takes its time, differently each time."""

    def step(self, action):
        time.sleep(random.random() * 0.003)
        return super().step(action)


def run_many(make_env, workers):
    """Twelve paths of two tasks through few workers; the order of all events."""
    events = []
    with EnvPool(make_env, workers) as pool:
        paths = {}
        for i in range(12):
            task = (TASK, OTHER)[i % 2]
            paths[i] = (task, ())
            pool.submit(i, task, (), toy.solution(task)[0])
        while pool.pending():
            for key, result in pool.collect("all"):
                task, past = paths[key]
                events.append((key, result))
                past += (PastStep(toy.solution(task)[len(past)], result.observation),)
                paths[key] = (task, past)
                if result.done or len(past) == 3 + key % 3:
                    pool.release(key)
                else:
                    pool.submit(key, task, past, toy.solution(task)[len(past)])
        stats = {k: v for k, v in pool.stats.items() if k != "step_seconds"}
    return events, stats


def test_order_and_stats_do_not_depend_on_time():
    fast = run_many(toy.ToyEnvironment, 3)
    assert fast == run_many(SlowToy, 3)
    assert len(fast[0]) == 12 * 4 and fast[1]["env_steps"] == 48


def test_collect_any_and_none():
    gate = threading.Event()

    class Gated(toy.ToyEnvironment):
        def step(self, action):
            if action == "open red":
                gate.wait(10)
            return super().step(action)

    with EnvPool(Gated, workers=2) as pool:
        pool.submit("slow", TASK, (), "open red")
        pool.submit("quick", TASK, (), "go on")
        assert [key for key, _ in pool.collect("any")] == ["quick"]
        assert pool.collect("none") == []
        gate.set()
        assert [key for key, _ in pool.collect("all")] == ["slow"]
        assert pool.collect("any") == []


class Flaky(toy.ToyEnvironment):
    """Dies at given steps of all environments of its class together."""

    dies_at: set[int] = set()
    count = 0
    closed = 0

    def step(self, action):
        type(self).count += 1
        if type(self).count in self.dies_at:
            raise OSError("broken pipe")
        return super().step(action)

    def close(self):
        type(self).closed += 1


def flaky(dies_at):
    return type("FlakyNow", (Flaky,), {"dies_at": dies_at, "count": 0, "closed": 0})


def test_a_dead_environment_is_replaced_and_its_path_replayed():
    actions = toy.solution(TASK)
    kind = flaky({3, 4})
    with EnvPool(kind, workers=1) as pool:
        past = ()
        for action in actions:
            pool.submit("path", TASK, past, action)
            [(_, result)] = pool.collect()
            past += (PastStep(action, result.observation),)
        assert result.success and past == played(actions)
        assert pool.stats["worker_restarts"] == 2 and pool.stats["env_steps"] == len(actions)
    assert kind.closed == 3


def test_an_environment_that_always_dies_is_a_clear_error():
    with EnvPool(flaky(set(range(100))), workers=1) as pool:
        pool.submit("path", TASK, (), "go on")
        with pytest.raises(EnvironmentDied, match="died 4 times at step 1.*broken pipe"):
            pool.collect()
        assert issubclass(EnvironmentDied, UserError)
        pool.release("path")


class Poisoned(toy.ToyEnvironment):
    def step(self, action):
        if action == "poison":
            raise OSError("broken pipe")
        return super().step(action)


def test_an_action_that_ends_every_environment_ends_its_path(caplog):
    past = played(toy.solution(TASK)[:2])
    with EnvPool(Poisoned, workers=1) as pool:
        pool.submit("path", TASK, past, "poison")
        [(_, result)] = pool.collect()
        assert result == StepResult(BROKEN, 0.0, True, False, False)
        assert pool.stats["broken_actions"] == 1 and pool.stats["env_steps"] == 0
        assert "'poison' ends the environment" in caplog.text
        pool.release("path")
        pool.submit("other", TASK, past, "go on")  # the worker lives on
        assert pool.collect()[0][1].observation != BROKEN


def test_a_corrupted_observation_is_detected(caplog):
    past = played(toy.solution(TASK)[:3])
    bad = (*past[:1], past[1]._replace(observation="A corridor, 7 to go."), *past[2:])
    with EnvPool(toy.ToyEnvironment, workers=1) as pool:
        pool.submit("good", TASK, past, "go on")
        pool.collect()
        pool.release("good")
        pool.submit("bad", TASK, bad, "go on")
        with pytest.raises(ReplayMismatch, match="differs at step 2: expected 'A corridor, 7"):
            pool.collect()
        assert pool.stats["replay_mismatches"] == 3
        assert "differs at step 2" in caplog.text
        pool.release("bad")
        pool.submit("good again", TASK, past, "go on")
        assert pool.collect()[0][1].valid


def test_a_start_that_differs_is_detected():
    class Changing(toy.ToyEnvironment):
        starts = 0

        def start(self, task):
            Changing.starts += 1
            text = super().start(task)
            return text._replace(observation=f"{text.observation}{Changing.starts > 1}")

    with EnvPool(Changing, workers=1) as pool:
        pool.submit(1, TASK)
        pool.collect()
        pool.release(1)
        pool.submit(2, TASK)
        with pytest.raises(ReplayMismatch, match="step 0"):
            pool.collect()


def test_an_error_keeps_the_results_of_others():
    with EnvPool(toy.ToyEnvironment, workers=3) as pool:
        pool.submit(1, TASK)
        pool.submit(2, Task("toy", "no such", 0))
        pool.submit(3, OTHER)
        with pytest.raises(UserError, match="no such"):
            pool.collect()
        assert [key for key, _ in pool.collect()] == [1, 3]


def test_misuse_is_refused():
    with EnvPool(toy.ToyEnvironment, workers=1) as pool:
        pool.submit(1, TASK)
        with pytest.raises(ValueError, match="busy"):
            pool.release(1)
        pool.collect()
        pool.submit(2, TASK)
        with pytest.raises(ValueError, match="waiting job already"):
            pool.submit(2, TASK)
        pool.rename("holds no worker", 3)  # nothing to hand on
        assert pool.pending() == 0
        pool.release(2)  # its waiting job is dropped
        assert pool.waiting() == 0
        pool.release("never heard of")
    with pytest.raises(UserError, match="at least 1"):
        EnvPool(toy.ToyEnvironment, workers=0)


def test_default_workers_is_sensible():
    assert default_workers() >= 1


@pytest.mark.parametrize(
    "cores,free,each,expected",
    [
        (2, 64e9, 200e6, 12),  # six per core
        (16, 10e9, 200e6, 25),  # half of what is free
        (64, 1000e9, 200e6, 40),  # 8 GB
        (64, 1000e9, 450e6, 17),
        (2, 0, 200e6, 1),
    ],
)
def test_default_workers_stay_within_a_bound(monkeypatch, cores, free, each, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr("spark_jax.envs.pool._free_memory", lambda: free)
    assert default_workers(each) == expected


def test_paths_of_experts_stay_within_the_bound(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr("spark_jax.envs.pool._free_memory", lambda: 1000e9)
    asked = []
    monkeypatch.setattr(expert, "gold_paths", lambda tasks, workers, *_: asked.append(workers))
    for workers in (2, 40):
        worlds._gold("full", "easy", [], workers, None, None)
    assert asked == [2, 17]


def test_results_are_plain_values():
    with EnvPool(toy.ToyEnvironment, workers=1) as pool:
        pool.submit(1, TASK, (), "go on")
        [(_, result)] = pool.collect()
        assert isinstance(result, StepResult)
