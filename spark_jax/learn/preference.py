"""Direct preference optimisation over whole paths (DPO, arXiv 2305.18290; ETO, 2403.02502)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spark_jax.learn.credit import SegmentWeights
from spark_jax.types import Tree


class Pairs(NamedTuple):
    """Indices of paths (of a list of per-path sums): one that did better, one that did worse."""

    better_P: np.ndarray
    worse_P: np.ndarray


def dpo_loss(
    logp_S: jax.Array, ref_logp_S: jax.Array, pairs: Pairs, beta: float
) -> tuple[jax.Array, jax.Array]:
    """Mean over pairs of -log sigmoid(beta m), m = (better's log-ratio) - (worse's log-ratio).

    Args:
      logp_S, ref_logp_S: per path, the sum of the log-probabilities of its response tokens under
        the policy and under the reference; the log-ratio is their difference.

    Returns:
      the loss, and m of each pair [P], in nats.
    """
    ratio_S = logp_S - ref_logp_S
    margin_P = ratio_S[pairs.better_P] - ratio_S[pairs.worse_P]
    return -jax.nn.log_sigmoid(beta * margin_P).mean(), margin_P


def path_coefficients(
    logp_S: np.ndarray, ref_logp_S: np.ndarray, pairs: Pairs, beta: float
) -> tuple[np.ndarray, float, np.ndarray]:
    """-d loss / d logp_S, what the log-probability of a path weighs, with the loss and margins.

    By the chain rule the gradient of the loss is the sum over paths of these times the gradient of
    the path's own sum: the paths of a pair may lie anywhere in the optimiser step.
    """

    def loss(logp):
        return dpo_loss(logp, jnp.asarray(ref_logp_S), pairs, beta)

    (value, margin_P), slope_S = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logp_S))
    return -np.asarray(slope_S, np.float64), float(value), np.asarray(margin_P)


def path_sums(tree: Tree, sum_G: np.ndarray) -> np.ndarray:
    """Per leaf the sum over the nodes of its path, [L]."""
    return np.array([sum_G[tree.path(leaf)].sum() for leaf in tree.leaf_ids()])


def path_weights(tree: Tree, coefficient_L: np.ndarray) -> SegmentWeights:
    """Weights that make `sft_loss` the sum of -coefficient * (log-prob of the path): every node
    adds up the leaves below it."""
    nll_G, n_G, zero_G = (np.zeros(len(tree.nodes)) for _ in range(3))
    for coefficient, leaf in zip(coefficient_L, tree.leaf_ids(), strict=True):
        path = tree.path(leaf)
        nll_G[path] += coefficient
        n_G[path] += 1.0
    return SegmentWeights(zero_G, zero_G, n_G, nll_G, zero_G)


def with_expert(tree: Tree, expert: Tree | None) -> tuple[Tree, int | None]:
    """The sampled tree with the expert's path (a chain) below the same prompt, and which of the
    leaves it is; the tree alone without an expert, or if the two prompts differ."""
    if expert is None or expert.nodes[0].context_ids != tree.nodes[0].context_ids:
        return tree, None
    last = len(tree.nodes) - 1
    added = [
        dataclasses.replace(n, id=n.id + last, parent=n.parent and n.parent + last)
        for n in expert.nodes[1:]
    ]
    both = dataclasses.replace(tree, nodes=[*tree.nodes, *added])
    return both, len(both.leaf_ids()) - 1


def pair_leaves(tree: Tree, expert: int | None) -> list[tuple[int, int]]:
    """(better, worse) rows of `tree.leaf_ids()`: every sampled failure against the expert's path,
    or without one against the best of the sampled paths (success, then the score); none where
    nothing is better than it."""
    leaves = [tree.nodes[i] for i in tree.leaf_ids()]
    rank = [(node.outcome == "success", node.score) for node in leaves]
    sampled = [i for i in range(len(leaves)) if i != expert]
    best = expert if expert is not None else max(sampled, key=lambda i: (rank[i], -i))
    return [
        (best, i)
        for i in sampled
        if leaves[i].outcome != "success" and (best == expert or rank[best] > rank[i])
    ]


def only_paired(tree: Tree, pairs: Sequence[tuple[int, int]]) -> tuple[Tree, list[tuple[int, int]]]:
    """The tree without the paths that are in no pair, and the pairs as rows of its leaves."""
    leaves = tree.leaf_ids()
    rows = sorted({row for pair in pairs for row in pair})
    kept = sorted({i for row in rows for i in tree.path(leaves[row])})
    number = {old: new for new, old in enumerate(kept)} | {-1: -1}
    nodes = [
        dataclasses.replace(tree.nodes[i], id=number[i], parent=number[tree.nodes[i].parent])
        for i in kept
    ]
    place = {row: i for i, row in enumerate(rows)}
    return dataclasses.replace(tree, nodes=nodes), [(place[b], place[w]) for b, w in pairs]


def flat_pairs(groups: Sequence[tuple[Tree, Sequence[tuple[int, int]]]]) -> Pairs:
    """The pairs of several trees as indices into the concatenation of their leaves."""
    better, worse, start = [], [], 0
    for tree, pairs in groups:
        better += [start + b for b, _ in pairs]
        worse += [start + w for _, w in pairs]
        start += len(tree.leaf_ids())
    return Pairs(np.array(better, np.int32), np.array(worse, np.int32))
