"""Roots and branching factor by how often a task's type is solved (not in the paper).

An easy type needs few samples to be solved again, and its leaves mostly agree; a hard one is worth
all the roots there are, and more ways to go on at every spark point.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from spark_jax.rollout.rates import Rates, count, expected
from spark_jax.types import Task, Tree


class Shape(NamedTuple):
    roots: int  # M
    branch: int  # B


def success_rate(tree: Tree) -> float:
    """Mean reward over the roots, of a node the mean over its children: an estimate of how often
    one episode succeeds (`rl.reward=score`: of what it scores), since a path that forks often does
    not weigh more."""
    value = [node.reward for node in tree.nodes]
    for node, kids in reversed(list(enumerate(tree.children()))):
        if kids:
            value[node] = float(np.mean([value[k] for k in kids]))
    return value[0]


def count_successes(rates: Rates, trees: Iterable[Tree]) -> dict[str, list[float]]:
    """`rates` after these trees of one iteration; a new dict is returned."""
    return count(rates, trees, success_rate)


def expected_success(rates: Rates, name: str) -> float:
    """(1 + successes) / (2 + trees) of a type: 1/2 while nothing is known."""
    return expected(rates, name)


def adapted(shape: Shape, rates: Rates, name: str) -> Shape:
    """The shape of the next trees of a type whose expected success is p.

    With d = 1 - p, how hard it is: roots = 2 d M, between 2 and M, and branch = B + 2 d, both
    rounded. So M and B + 1 where half of the episodes succeed, M and B + 2 where nearly none does,
    2 and B where nearly all do. `shape` itself while nothing is known of the type.
    """
    if name not in rates:
        return shape
    hard = 1 - expected_success(rates, name)
    roots = min(shape.roots, max(2, round(2 * hard * shape.roots)))
    return Shape(roots, shape.branch + round(2 * hard))


def adapt_metrics(shape: Shape, rates: Rates, tasks: Iterable[Task]) -> dict[str, float]:
    """Of each type among `tasks`: expected success, roots and branch of its trees."""
    out: dict[str, float] = {}
    for name in sorted({task.type for task in tasks}):
        roots, branch = adapted(shape, rates, name)
        out |= {
            f"rollout/expected_success_{name}": expected_success(rates, name),
            f"rollout/roots_{name}": roots,
            f"rollout/branch_{name}": branch,
        }
    return out
