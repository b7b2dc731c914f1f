"""Which task types are worth training on now (not in the paper).

A tree whose leaves all end alike has no advantages and teaches nothing, and one that fails
everywhere is also the longest. So types are drawn by how often their trees have had both outcomes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from spark_jax.types import Task, Tree

# Task type -> (its trees with both outcomes, its trees), both fading.
Mixed = Mapping[str, Sequence[float]]

MEMORY = 0.9  # share of the past that is kept when new trees of a type come


def has_both_outcomes(tree: Tree) -> bool:
    """Whether some leaves succeeded and some did not."""
    return len({tree.nodes[leaf].reward > 0 for leaf in tree.leaf_ids()}) == 2


def count_mixed(mixed: Mixed, trees: Iterable[Tree]) -> dict[str, list[float]]:
    """`mixed` after these trees of one iteration; a new dict is returned."""
    new: dict[str, list[bool]] = {}
    for tree in trees:
        new.setdefault(tree.task.type, []).append(has_both_outcomes(tree))
    out = {name: list(known) for name, known in mixed.items()}
    for name, values in sorted(new.items()):
        both, count = mixed.get(name, (0.0, 0.0))
        out[name] = [MEMORY * both + sum(values), MEMORY * count + len(values)]
    return out


def type_weights(mixed: Mixed, types: Iterable[str]) -> dict[str, float]:
    """(1 + trees with both outcomes) / (2 + trees) of each type: 1/2 while nothing is known, and
    never 0, so that a type that was too hard or too easy is looked at again."""
    out = {}
    for name in types:
        both, count = mixed.get(name, (0.0, 0.0))
        out[name] = (1 + both) / (2 + count)
    return out


def curriculum_metrics(mixed: Mixed, tasks: Iterable[Task]) -> dict[str, float]:
    """Of each type among `tasks`: the weight it was drawn with."""
    weights = type_weights(mixed, sorted({task.type for task in tasks}))
    return {f"rollout/weight_{name}": weight for name, weight in weights.items()}
