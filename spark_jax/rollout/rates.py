"""How often something is true of the trees of a task type, the past fading."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from spark_jax.types import Tree

# Task type -> (sum of a value in 0..1 over its trees, number of its trees), both fading.
Rates = Mapping[str, Sequence[float]]

MEMORY = 0.9  # share of the past that is kept when new trees of a type come


def count(
    rates: Rates, trees: Iterable[Tree], value: Callable[[Tree], float]
) -> dict[str, list[float]]:
    """`rates` of `value` after these trees of one iteration; a new dict is returned."""
    new: dict[str, list[float]] = {}
    for tree in trees:
        new.setdefault(tree.task.type, []).append(value(tree))
    out = {name: list(known) for name, known in rates.items()}
    for name, values in sorted(new.items()):
        total, trees_before = rates.get(name, (0.0, 0.0))
        out[name] = [MEMORY * total + sum(values), MEMORY * trees_before + len(values)]
    return out


def expected(rates: Rates, name: str) -> float:
    """(1 + sum) / (2 + trees) of a type: 1/2 while nothing is known."""
    total, trees = rates.get(name, (0.0, 0.0))
    return (1 + total) / (2 + trees)
