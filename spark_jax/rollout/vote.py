"""Which leaf of a tree stands for it when there is no reward to look at: the majority's."""

from __future__ import annotations

from spark_jax.types import Tree


def majority_leaf(tree: Tree) -> int:
    """The leaf that a majority vote chooses, as SPARK votes at test time.

    A leaf votes for its last decision: what it saw before its last action, and that action. In
    WebShop that is the page of the product that it buys. What the environment answered is not
    looked at, nor whether the episode ended: WebShop answers a purchase with its reward, and a
    game of ALFWorld ends only if it is won. Ties go to the decision that comes first in the tree.
    """
    votes: dict[tuple[str, str], list[int]] = {}
    for leaf in tree.leaf_ids():
        node = tree.nodes[leaf]
        votes.setdefault((tree.nodes[node.parent].observation, node.action), []).append(leaf)
    return max(votes.values(), key=len)[0]
