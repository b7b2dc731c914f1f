"""Task types by how often their trees had both outcomes."""

import collections
import dataclasses

import pytest
from test_learn_advantage import forked_tree

from spark_jax.envs.tasks import tasks_of_iteration
from spark_jax.rollout.curriculum import (
    count_mixed,
    curriculum_metrics,
    type_weights,
)
from spark_jax.rollout.measure import is_informative
from spark_jax.types import Task


def tree_of(kind, rewards):
    tree = forked_tree(rewards)
    tree.task = dataclasses.replace(tree.task, type=kind)
    return tree


LOST, WON, BOTH = (0.0,) * 4, (1.0,) * 4, (0.0, 0.0, 0.0, 1.0)


def test_only_trees_with_success_and_failure_count():
    assert [is_informative(forked_tree(r)) for r in (LOST, WON, BOTH)] == [False, False, True]
    first = count_mixed({}, [tree_of("a", BOTH), tree_of("a", WON), tree_of("b", LOST)])
    assert first == {"a": [1, 2], "b": [0, 1]}
    second = count_mixed(first, [tree_of("a", BOTH)])
    assert second["a"] == pytest.approx([0.9 + 1, 0.9 * 2 + 1]), "the past fades"
    assert second["b"] == [0, 1], "where nothing new is known nothing fades"
    assert first == {"a": [1, 2], "b": [0, 1]}


def test_weights_by_hand():
    mixed = {"a": [3, 4], "b": [0, 8]}
    weights = type_weights(mixed, ["a", "b", "new"])
    assert weights == {"a": 4 / 6, "b": 1 / 10, "new": 1 / 2}
    tasks = [Task("toy", "b", 0), Task("toy", "b", 1)]
    assert curriculum_metrics(weights, tasks) == {"rollout/weight_b": 1 / 10}


def test_types_are_drawn_by_weight_and_variations_as_ever():
    groups = {name: [Task("toy", name, i) for i in range(40)] for name in "abc"}
    weights = {"a": 0.6, "b": 0.3, "c": 0.0}
    drawn = tasks_of_iteration(groups, 4000, 1, 2, weights)
    counts = collections.Counter(task.type for task in drawn)
    assert counts["c"] == 0 and counts["a"] / counts["b"] == pytest.approx(2, rel=0.15)
    few = tasks_of_iteration(groups, 40, 1, 2, {"a": 1.0, "b": 0.0, "c": 0.0})
    assert len(set(few)) == 40, "without replacement"
    assert few != tasks_of_iteration(groups, 40, 1, 3, {"a": 1.0, "b": 0.0, "c": 0.0})
