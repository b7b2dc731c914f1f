"""Which leaf of a tree stands for it when there is no reward to look at: the majority's."""

from __future__ import annotations

from spark_jax.types import Tree


def majority_leaf(tree: Tree) -> int:
    """The leaf that a majority vote chooses, as SPARK votes at test time.

    A leaf votes for its last decision: what it saw before its last action, and that action. In
    WebShop that is the page of the product that it buys. What the environment answered is not
    looked at, nor whether the episode ended: WebShop answers a purchase with its reward, and a
    game of ALFWorld ends only if it is won. A leaf whose last response held no action votes only if
    no other has one. Ties go to the decision that comes first in the tree.
    """
    leaves = tree.leaf_ids()
    decided = [leaf for leaf in leaves if tree.nodes[leaf].action]
    votes: dict[tuple[str, str], list[int]] = {}
    for leaf in decided or leaves:
        votes.setdefault((_seen_before(tree, leaf), tree.nodes[leaf].action), []).append(leaf)
    return max(votes.values(), key=len)[0]


def _seen_before(tree: Tree, leaf: int) -> str:
    """What the environment last said before the leaf's action: with `tree.fork_at=same_step` there
    may be a node of mere reasoning between."""
    node = tree.nodes[tree.nodes[leaf].parent]
    while node.id and not node.action:
        node = tree.nodes[node.parent]
    return node.observation
