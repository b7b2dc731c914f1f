"""Which leaf of a tree stands for it when there is no reward to look at: the majority's."""

from __future__ import annotations

from spark_jax.types import Tree


def majority_leaf(tree: Tree) -> int:
    """The leaf that a majority vote chooses, as SPARK votes at test time.

    A leaf whose episode ended votes for how it ended: its last action and what the environment
    answered. A path that was cut by a limit has no answer and votes only if no other has one. Ties
    go to the answer that comes first in the tree. Rewards are not looked at.
    """
    leaves = tree.leaf_ids()
    ended = [i for i in leaves if tree.nodes[i].outcome in ("success", "failure")]
    votes: dict[tuple[str, str], list[int]] = {}
    for leaf in ended or leaves:
        node = tree.nodes[leaf]
        votes.setdefault((node.action, node.observation), []).append(leaf)
    return max(votes.values(), key=len)[0]
