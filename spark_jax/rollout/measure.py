"""What a set of trees says about the policy: pure functions over finished trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from spark_jax.types import Tree


class PathMeasure(NamedTuple):
    """One leaf's path."""

    success: bool  # by env.success
    loose: bool  # the environment ended the episode with a score above 0 (the authors' rule)
    score: float  # 0..100
    steps: int  # environment turns
    repeated: int  # steps whose (action, observation) happened on this path before
    invalid: int  # steps that the environment did not understand
    explored: int  # steps with a complete <explore> block
    response_tokens: int
    tokens: int  # of the whole path, prompt included; of all its rows if prompts are rebuilt


def measure_path(tree: Tree, leaf: int) -> PathMeasure:
    """Counts along the path to `leaf`."""
    path = [tree.nodes[i] for i in tree.path(leaf)]
    turns = [node for node in path[1:] if node.action or node.observation]
    seen: set[tuple[str, str]] = set()
    repeated = 0
    for node in turns:
        repeated += (node.action, node.observation) in seen
        seen.add((node.action, node.observation))
    last = path[-1]
    ended = last.outcome in ("success", "failure")
    return PathMeasure(
        success=last.outcome == "success",
        loose=ended and last.score > 0,
        score=last.score,
        steps=last.step,
        repeated=repeated,
        invalid=sum(not node.valid for node in turns),
        explored=sum(node.spark for node in path),
        response_tokens=sum(len(node.response_ids) for node in path),
        tokens=sum(len(node.response_ids) + len(node.context_ids) for node in path),
    )


def duplicate_children(tree: Tree) -> int:
    """Siblings that wrote exactly what an earlier sibling wrote."""
    count = 0
    for kids in tree.children():
        texts = [tuple(tree.nodes[k].response_ids) for k in kids]
        count += len(texts) - len(set(texts))
    return count


def is_informative(tree: Tree) -> bool:
    """Whether its leaves do not all have the same reward: only such a group teaches."""
    return len({tree.nodes[i].reward for i in tree.leaf_ids()}) > 1


def informative_groups(trees: Sequence[Tree]) -> int:
    """How many of the groups are informative."""
    return sum(map(is_informative, trees))


def forks_of(tree: Tree) -> dict[int, bool]:
    """Node -> its children end in different best rewards, for the forks after a step."""
    best = [node.reward for node in tree.nodes]
    for node in reversed(tree.nodes[1:]):
        best[node.parent] = max(best[node.parent], best[node.id])
    return {
        node: len({best[k] for k in kids}) > 1
        for node, kids in enumerate(tree.children())
        if node > 0 and len(kids) > 1
    }


def rollout_metrics(trees: Sequence[Tree]) -> dict[str, float]:
    """The `rollout/*` metrics that can be read off trees. Ratios over steps or leaves."""
    leaves = [(tree, leaf) for tree in trees for leaf in tree.leaf_ids()]
    paths = [measure_path(tree, leaf) for tree, leaf in leaves]
    nodes = [node for tree in trees for node in tree.nodes[1:]]
    steps = max(1, sum(p.steps for p in paths))
    # With tree.fork_at=same_step a step may be two nodes, of which the first has the tag.
    begun = sum(n.step > tree.nodes[n.parent].step for tree in trees for n in tree.nodes[1:])
    forks = [
        (tree.nodes[node].spark, split) for tree in trees for node, split in forks_of(tree).items()
    ]
    return {
        "rollout/success_rate": sum(p.success for p in paths) / len(paths),
        "rollout/score": sum(p.score for p in paths) / len(paths),
        "rollout/leaves": len(paths),
        "rollout/budget_used": len(paths) / sum(tree.leaves for tree in trees),
        "rollout/reinvested": sum(node.reinvested for tree in trees for node in tree.nodes),
        "rollout/steps": steps / len(paths),
        "rollout/responses": len(nodes),
        "rollout/explore_rate": sum(node.spark for node in nodes) / begun,
        "rollout/repeat_ratio": sum(p.repeated for p in paths) / steps,
        "rollout/invalid_ratio": sum(p.invalid for p in paths) / steps,
        "rollout/response_tokens": sum(len(node.response_ids) for node in nodes),
        "rollout/linear_tokens": sum(p.tokens for p in paths),
        "rollout/duplicate_children": sum(duplicate_children(tree) for tree in trees),
        "rollout/informative_groups": informative_groups(trees),
        "rollout/groups": len(trees),
        "rollout/forks": len(forks),
        "rollout/splitting_forks": sum(split for _, split in forks),
        "rollout/explore_forks": sum(spark for spark, _ in forks),
        "rollout/explore_splitting_forks": sum(spark and split for spark, split in forks),
    }
