"""What trees say of the policy, counted by hand."""

import dataclasses

import pytest

from spark_jax.learn.advantage import path_success_rate
from spark_jax.rollout.measure import rollout_metrics
from spark_jax.types import Node, Task, Tree


def tree(parents, rewards, spark=(), tokens=3):
    """Nodes with `tokens` sampled tokens each; the leaves' rewards in order of their numbers."""
    nodes = [Node(0, -1, 0, context_ids=[1] * 10)]
    for i, parent in enumerate(parents, 1):
        step = nodes[parent].step + 1
        nodes.append(
            Node(i, parent, step, [7] * tokens, context_ids=[1], action="go", observation="ok")
        )
        nodes[i].spark = i in spark
    out = Tree(Task("toy", "t", 0), 4, 2, 2, "explore", nodes)
    for leaf, reward in zip(out.leaf_ids(), rewards, strict=True):
        nodes[leaf].reward, nodes[leaf].done = reward, True
        nodes[leaf].outcome = "success" if reward else "failure"
    return out


# 0 ─┬─ 1 (explore) ─┬─ 3 ✔
#    │               └─ 4 ─┬─ 5 ✘
#    │                     └─ 6 ✘
#    └─ 2 ✘
MIXED = tree([0, 0, 1, 1, 4, 4], [0, 1, 0, 0], spark=(1, 6))
ALIKE = tree([0, 0, 1, 1], [0, 0, 0], spark=(1,))


def test_a_token_counts_once_however_many_leaves_share_it():
    m = rollout_metrics([MIXED, ALIKE])
    assert m["rollout/response_tokens"] == 3 * (6 + 4)
    assert m["rollout/responses"] == 10
    assert m["rollout/leaves"] == 7 and m["rollout/groups"] == 2
    assert m["rollout/explore_rate"] == 3 / 10


def test_a_step_of_two_nodes_is_one_step():
    """Reasoning with the tag, then an action (tree.fork_at=same_step), and a step without it."""
    split = tree([0, 1, 1], [0, 1], spark=(1,))
    for node, step in ((1, 1), (2, 1), (3, 1)):
        split.nodes[node].step = step
    split.nodes.append(dataclasses.replace(split.nodes[3], id=4, parent=3, step=2))
    assert rollout_metrics([split])["rollout/explore_rate"] == 1 / 2


def test_forks_that_split_outcomes_at_explore_steps_and_elsewhere():
    m = rollout_metrics([MIXED, ALIKE])
    assert (m["rollout/forks"], m["rollout/splitting_forks"]) == (3, 1)
    assert (m["rollout/explore_forks"], m["rollout/explore_splitting_forks"]) == (2, 1)
    assert m["rollout/informative_groups"] == 1
    elsewhere = rollout_metrics([tree([0, 0, 1, 1], [0, 1, 0], spark=(2,))])
    assert elsewhere["rollout/splitting_forks"] == 1
    assert elsewhere["rollout/explore_forks"] == elsewhere["rollout/explore_splitting_forks"] == 0


def test_success_of_the_policy_weighs_every_root_the_same():
    assert rollout_metrics([MIXED])["rollout/success_rate"] == 1 / 4
    assert path_success_rate([MIXED]) == pytest.approx((1 / 2 + 0) / 2)
    assert path_success_rate([MIXED, ALIKE]) == pytest.approx((1 / 2 + 0) / 4)


def test_half_a_reward_is_no_success():
    partial = tree([0, 0], [0.5, 1.0])
    partial.nodes[1].outcome = "failure"
    assert path_success_rate([partial]) == 1 / 2
    assert rollout_metrics([partial])["rollout/success_rate"] == 1 / 2
