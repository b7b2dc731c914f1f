"""From a tree and its advantages to three numbers a segment (docs/methods.md)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from spark_jax.types import Tree


class SegmentWeights(NamedTuple):
    """What the response tokens of each node (segment) of a tree weigh in the loss, float64 [G].

    Sums run over the leaves l below the node, with leaf weights w_l and advantages A_l:
    `a_plus_G` = sum w max(A, 0), `a_minus_G` = sum w min(A, 0), `n_G` = sum w.

    `nll_G` is what the negative log-likelihood of the response tokens weighs in itself (in the
    warm-up's loss, and ETO's); `context_nll_G` the same for the tokens that follow the response,
    an observation, or at the root the prompt.
    """

    a_plus_G: np.ndarray
    a_minus_G: np.ndarray
    n_G: np.ndarray
    nll_G: np.ndarray
    context_nll_G: np.ndarray


def response_tokens(tree: Tree) -> np.ndarray:
    """Response tokens on the path of each leaf, [L]."""
    return np.array(
        [sum(len(tree.nodes[i].response_ids) for i in tree.path(leaf)) for leaf in tree.leaf_ids()],
        np.float64,
    )


def segment_weights(
    tree: Tree,
    advantage_LG: np.ndarray,
    leaf_weight_L: np.ndarray,
    invalid_penalty: float = 0.0,
    per_leaf: bool = False,
    context: float = 0.0,
) -> SegmentWeights:
    """Adds up the leaves below every node.

    Args:
      tree: the tree.
      advantage_LG: of leaf l at node g (a function of `learn.advantage`).
      leaf_weight_L: w of each leaf.
      invalid_penalty: subtracted from the advantage of a step whose action the environment did
        not understand: from that step's response tokens only, after normalisation.
      per_leaf: False: every response token of every leaf weighs w (mean over tokens). True: every
        leaf weighs w in all, w / (its response tokens) a token (the mean of the original GRPO).
      context: weight of the likelihood of what the environment wrote.

    In all cases `normaliser` gives the Z that the loss is divided by.
    """
    leaves = tree.leaf_ids()
    weight_L = np.asarray(leaf_weight_L, np.float64)
    if per_leaf:
        weight_L = weight_L / np.maximum(response_tokens(tree), 1.0)
    penalty_G = np.array([0.0 if node.valid else invalid_penalty for node in tree.nodes])
    a_plus_G, a_minus_G, n_G = (np.zeros(len(tree.nodes)) for _ in range(3))
    for row, leaf in enumerate(leaves):
        path = tree.path(leaf)
        advantage = advantage_LG[row, path] - penalty_G[path]
        a_plus_G[path] += weight_L[row] * np.maximum(advantage, 0.0)
        a_minus_G[path] += weight_L[row] * np.minimum(advantage, 0.0)
        n_G[path] += weight_L[row]
    return SegmentWeights(a_plus_G, a_minus_G, n_G, np.zeros(len(tree.nodes)), context * n_G)


def sft_weights(tree: Tree, context: float = 0.0) -> SegmentWeights:
    """nll = leaves below (1 on a chain), no advantage: for `learn.loss.sft_loss`. Responses that
    the environment did not understand are not imitated.

    `context`: what a token of an observation or of the prompt weighs beside one of a response.
    """
    leaves = len(tree.leaf_ids())
    zero = np.zeros((leaves, len(tree.nodes)))
    weights = segment_weights(tree, zero, np.ones(leaves), context=context)
    imitated_G = weights.n_G * [node.valid for node in tree.nodes]
    return weights._replace(n_G=imitated_G, nll_G=imitated_G)


def context_targets(tree: Tree) -> np.ndarray:
    """Context tokens of each node that can be predicted, [G]: they follow a token, and a response
    follows them."""
    inner = {node.parent for node in tree.nodes}
    return np.array(
        [
            max(len(node.context_ids) - (node.parent < 0), 0) if node.id in inner else 0
            for node in tree.nodes
        ]
    )


def normaliser(items: Iterable[tuple[Tree, SegmentWeights]]) -> float:
    """Z = sum of n over all response tokens, of all trees of an optimiser step.

    With leaf weights 1 that is the number of response tokens of all leaves; with weights
    1 / (response tokens of the leaf) the very same sum is the number of leaves.
    """
    return sum(_over_responses(tree, weights.n_G) for tree, weights in items)


def likelihood_normaliser(items: Iterable[tuple[Tree, SegmentWeights]]) -> float:
    """Z of the warm-up: the sum of the likelihood's weights over all target tokens."""
    total = 0.0
    for tree, weights in items:
        total += _over_responses(tree, weights.nll_G)
        total += float(weights.context_nll_G @ context_targets(tree))
    return total


def _over_responses(tree: Tree, weight_G: np.ndarray) -> float:
    """Sum of the weights of all response tokens of a tree."""
    return float(weight_G @ [len(node.response_ids) for node in tree.nodes])


def record_advantages(tree: Tree, weights: SegmentWeights) -> None:
    """Writes the mean advantage of each node, (a_plus + a_minus) / n, into the tree."""
    for node in tree.nodes[1:]:
        n = weights.n_G[node.id]
        total = weights.a_plus_G[node.id] + weights.a_minus_G[node.id]
        node.advantage = float(total / n) if n > 0 else 0.0
