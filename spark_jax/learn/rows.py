"""Trees whose prompts are rebuilt at each step (`env.history` > 0), as the learner packs them.

The learner's row of a step is its prompt and its response, and every leaf below the step has that
row once. Rows that begin alike share what they begin with: all prompts of the tree become a trie
of tokens, and the responses hang below their prompts. So each shared token is computed once, and
since the weights of a step are sums over the leaves below it already (learn/credit.py), the loss
over the trie is that of the plain rows of all leaves.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np

from spark_jax.cache.pool import common_prefix
from spark_jax.learn.credit import SegmentWeights
from spark_jax.types import Node, Tree


class ToPack(NamedTuple):
    """A tree to pack, its weights, and where the steps of the sampled tree lie in it."""

    tree: Tree
    weights: SegmentWeights
    place: np.ndarray  # sampled node -> node of `tree` that holds its response


def to_pack(tree: Tree, weights: SegmentWeights) -> ToPack:
    """The trie of a tree of rebuilt prompts; any other tree as it is.

    A token of a prompt weighs (`context_nll_G`) what the prompts it stands in weigh together.
    """
    if not tree.rebuilt:
        return ToPack(tree, weights, np.arange(len(tree.nodes)))
    children = tree.children()
    nodes: list[Node] = []
    source: list[int] = []  # the sampled step of each new node, -1 for a piece of prompts
    context: list[float] = []
    place = np.zeros(len(tree.nodes), int)

    def add(node: Node, parent: int, sampled: int, weight: float) -> int:
        nodes.append(dataclasses.replace(node, id=len(nodes), parent=parent))
        source.append(sampled)
        context.append(weight)
        return len(nodes) - 1

    def add_responses(sampled: int, parent: int) -> None:
        """The steps taken after a prompt; those that stand in two nodes (same_step) go on."""
        for child in children[sampled]:
            node = dataclasses.replace(tree.nodes[child], context_ids=[])
            place[child] = add(node, parent, child, 0.0)
            if not tree.nodes[child].context_ids:
                add_responses(child, place[child])

    def add_prompts(members: list[int], begin: int, parent: int) -> None:
        """`members`: sampled nodes in the order of their prompts, which agree before `begin`."""
        first, last = tree.nodes[members[0]].context_ids, tree.nodes[members[-1]].context_ids
        end = common_prefix(first, last)  # what these two share, all between them share
        piece = Node(-1, -1, 0, context_ids=first[begin:end])
        weight = sum(float(weights.context_nll_G[i]) for i in members)
        here = add(piece, parent, -1, weight)

        def next_token(i: int) -> int:
            ids = tree.nodes[i].context_ids
            return ids[end] if len(ids) > end else -1

        for token, group in itertools.groupby(members, next_token):
            if token < 0:
                for i in group:
                    add_responses(i, here)
            else:
                add_prompts(list(group), end, here)

    prompts = [i for i, node in enumerate(tree.nodes) if children[i] and node.context_ids]
    add_prompts(sorted(prompts, key=lambda i: tree.nodes[i].context_ids), 0, -1)
    picked = np.array(source)

    def of_steps(value_G: np.ndarray) -> np.ndarray:
        return np.where(picked < 0, 0.0, np.asarray(value_G, np.float64)[picked])

    rows = SegmentWeights(*map(of_steps, weights[:4]), np.array(context))
    return ToPack(dataclasses.replace(tree, nodes=nodes, rebuilt=False), rows, place)
