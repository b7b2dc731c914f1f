"""Which task types are worth training on now (not in the paper).

A tree whose leaves all end alike has no advantages and teaches nothing, and one that fails
everywhere is also the longest. So types are drawn by how often their trees have had both outcomes.
"""

from __future__ import annotations

from collections.abc import Iterable

from spark_jax.rollout.measure import is_informative
from spark_jax.rollout.rates import Rates, count, expected
from spark_jax.types import Task, Tree


def count_mixed(mixed: Rates, trees: Iterable[Tree]) -> dict[str, list[float]]:
    """`mixed` after these trees of one iteration; a new dict is returned."""
    return count(mixed, trees, is_informative)


def type_weights(mixed: Rates, types: Iterable[str]) -> dict[str, float]:
    """(1 + trees with both outcomes) / (2 + trees) of each type: 1/2 while nothing is known, and
    never 0, so that a type that was too hard or too easy is looked at again."""
    return {name: expected(mixed, name) for name in types}


def curriculum_metrics(weights: dict[str, float], tasks: Iterable[Task]) -> dict[str, float]:
    """Of each type among `tasks`: the weight it was drawn with (`type_weights`)."""
    return {f"rollout/weight_{name}": weights[name] for name in sorted({t.type for t in tasks})}
