"""The shape of a tree by how often its type is solved."""

import dataclasses

import pytest
from test_learn_advantage import forked_tree
from trees import random_tree

from spark_jax.learn.advantage import leaf_rewards, path_weights
from spark_jax.rollout.adapt import (
    Shape,
    adapt_metrics,
    adapted,
    count_successes,
    expected_success,
    success_rate,
)
from spark_jax.types import Task

PAPER = Shape(4, 2)


def test_success_rate_by_hand():
    """forked_tree: roots 1 (children 3 and 4, of which 4 has 5 and 6) and 2."""
    assert success_rate(forked_tree((0.0, 1.0, 0.0, 1.0))) == ((1 + (0 + 1) / 2) / 2 + 0) / 2


@pytest.mark.parametrize("seed", range(20))
def test_success_rate_is_the_mean_over_roots(seed):
    """The twin: leaves weighed by 1 / children along their path."""
    tree = random_tree(seed)
    expected = (path_weights(tree) * leaf_rewards(tree)).sum() / len(tree.children()[0])
    assert success_rate(tree) == pytest.approx(expected)


def test_counts_fade_when_new_trees_come():
    easy, hard = forked_tree((1.0,) * 4), forked_tree((0.0,) * 4)
    hard.task = dataclasses.replace(hard.task, type="other")
    first = count_successes({}, [easy, hard, hard])
    assert first == {"t": [1.0, 1.0], "other": [0.0, 2.0]}
    second = count_successes(first, [easy])
    assert second == {"t": [pytest.approx(1.9), pytest.approx(1.9)], "other": [0.0, 2.0]}
    assert first == {"t": [1.0, 1.0], "other": [0.0, 2.0]}
    assert expected_success(second, "t") == pytest.approx(2.9 / 3.9)
    assert expected_success(second, "other") == 0.25
    assert expected_success(second, "unknown") == 0.5


@pytest.mark.parametrize(
    "successes, trees, shape",
    [
        (9.0, 9.0, (2, 2)),  # p = 10/11
        (3.0, 4.0, (3, 3)),  # p = 4/6: 2 * 1/3 * 4 = 2.67 roots, 2 + 0.67 children
        (2.0, 4.0, (4, 3)),  # p = 1/2
        (1.0, 8.0, (4, 4)),  # p = 2/10: 2 + 1.6 children
        (0.0, 9.0, (4, 4)),
    ],
)
def test_adapted_by_hand(successes, trees, shape):
    assert adapted(PAPER, {"t": (successes, trees)}, "t") == shape


def test_nothing_known_changes_nothing():
    assert adapted(PAPER, {"other": (9.0, 9.0)}, "t") == PAPER


def test_roots_and_branch_fall_as_success_rises():
    for most in range(1, 9):
        shapes = [adapted(Shape(most, 3), {"t": (float(s), 20.0)}, "t") for s in range(21)]
        assert shapes == sorted(shapes, reverse=True)
        for shape, easier in zip(shapes, shapes[1:], strict=False):
            assert shape.branch >= easier.branch
        assert all(min(2, most) <= shape.roots <= most for shape in shapes)
        assert all(3 <= shape.branch <= 5 for shape in shapes)


def test_metrics_are_by_type():
    rates = {"a": (0.0, 9.0)}
    metrics = adapt_metrics(PAPER, rates, [Task("toy", "b", 0), Task("toy", "a", 1)])
    assert metrics == {
        "rollout/expected_success_a": 1 / 11, "rollout/roots_a": 4, "rollout/branch_a": 4,
        "rollout/expected_success_b": 0.5, "rollout/roots_b": 4, "rollout/branch_b": 2,
    }  # fmt: skip
