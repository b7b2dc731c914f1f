"""How well each source of `tree.signal=calibrated` has told where a fork matters."""

from __future__ import annotations

from collections.abc import Iterable

from spark_jax.rollout.measure import forks_of
from spark_jax.rollout.rates import MEMORY
from spark_jax.rollout.signals import SOURCES, ForkCounts, beta, fired
from spark_jax.types import Tree


def count_forks(counts: ForkCounts, trees: Iterable[Tree], threshold: float) -> dict[str, list]:
    """`counts`, faded (the policy changes), and those of the `trees` of one iteration: source ->
    [forks that split, forks] among the forks at which it fired. A fork at which both fired counts
    for both; a new dict is returned.

    Args:
      threshold: of the rise of surprise, nats a token.
    """
    out = {source: [MEMORY * n for n in counts.get(source, (0, 0))] for source in SOURCES}
    for tree in trees:
        for node, split in forks_of(tree).items():
            surprises = [tree.nodes[i].surprise for i in tree.path(node)[1:]]
            for source, says in fired(tree.nodes[node].spark, surprises, threshold).items():
                out[source][0] += says and split
                out[source][1] += says
    return out


def reliabilities(counts: ForkCounts) -> dict[str, float]:
    """Metrics: the mean of each source's posterior."""
    parameters = {source: beta(counts, source) for source in SOURCES}
    return {f"rollout/reliability_{name}": a / (a + b) for name, (a, b) in parameters.items()}
