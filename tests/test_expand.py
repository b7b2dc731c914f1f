"""Trees grown with a scripted policy: budget, roots, forks, and independence from timing."""

import dataclasses
import itertools

import pytest
from scripted import DIALOGUE, TASK, InstantEnvironments, PastStep, ScriptedEngine

from spark_jax.rollout.budget import Budget, effective_branch
from spark_jax.rollout.expand import Limits, TreeRule, grow_trees
from spark_jax.rollout.signals import always, explore, make_signal, never

LIMITS = Limits(max_steps=9, response_tokens=80, path_tokens=900)


def grow(
    rule, seed=0, rate=0.3, latency=0, tasks=1, deterministic=True, limits=LIMITS, dialogue=DIALOGUE
):
    engine = ScriptedEngine(rate, latency, rule.fork_at)
    environments = InstantEnvironments(latency=latency)
    several = [dataclasses.replace(TASK, variation=i) for i in range(tasks)]
    trees = grow_trees(
        several, engine, environments, [dialogue] * tasks, rule, limits, (seed, "rl", 0),
        deterministic,
    )  # fmt: skip
    assert engine.alive == 0, "pages were lost"
    assert not environments.held, "a worker was never given back"
    return trees


def rule_of(leaves=8, roots=4, branch=2, signal=explore, fork_at="next_step"):
    return TreeRule(leaves, roots, branch, signal.__name__, signal, fork_at)


def check(tree, rule):
    """Every invariant of a tree that can be read off the tree alone."""
    children = tree.children()
    leaves = tree.leaf_ids()
    assert len(leaves) <= rule.leaves
    assert len(children[0]) == rule.roots
    assert tree.nodes[0].granted == tree.nodes[0].requested == rule.roots
    for node, kids in zip(tree.nodes, children, strict=True):
        assert node.parent < node.id
        if node.id == 0:
            continue
        assert node.response_ids and len(node.response_ids) == len(node.logprobs)
        if kids:
            assert not node.done and node.outcome is None
            assert len(kids) == node.granted <= node.requested <= rule.branch
            assert node.context_ids or (rule.fork_at == "same_step" and not node.action)
        else:
            assert node.done and node.outcome and not node.context_ids
            assert node.reward == (node.outcome == "success")
            assert (node.requested, node.granted) == ((0, 0) if node.spark else (1, 1))
        if node.granted > 1:
            assert node.spark or rule.signal is not explore
        if rule.fork_at == "same_step" and len(kids) == 1 and tree.nodes[kids[0]].done:
            assert node.action or node.requested == 1, "a step that ends its path asks for nothing"
    for i in leaves:
        check_path(tree, i)


def check_path(tree, leaf):
    """Every observation is what the environment says to the whole path before it."""
    past = ()
    for i in tree.path(leaf)[1:]:
        node = tree.nodes[i]
        if not node.action:
            continue
        answer = InstantEnvironments().answer(tree.task, past, node.action)
        assert (node.observation, node.score) == (answer.observation, answer.score)
        past = (*past, PastStep(node.action, node.observation))


def test_a_thousand_random_trees_keep_their_budget():
    shapes = itertools.cycle([(8, 4, 2), (8, 1, 3), (16, 2, 4), (5, 5, 2), (7, 3, 3), (2, 1, 2)])
    full = forked = 0
    for seed, (leaves, roots, branch) in zip(range(1000), shapes, strict=False):
        rule = rule_of(leaves, roots, branch)
        (tree,) = grow(rule, seed, rate=(0.1, 0.3, 0.6)[seed % 3], latency=seed)
        check(tree, rule)
        full += len(tree.leaf_ids()) == leaves
        forked += any(node.granted > 1 for node in tree.nodes[1:])
    assert full > 300 and forked > 500, "the trees were too simple to show anything"


@pytest.mark.parametrize("fork_at", ["next_step", "same_step"])
def test_latency_never_decides_a_tree(fork_at):
    rule = rule_of(branch=3, roots=2, fork_at=fork_at)
    for seed in range(25):
        calm = grow(rule, seed, tasks=3)
        for latency in (1, 2, 3):
            assert grow(rule, seed, latency=latency, tasks=3, deterministic=False) == calm


def test_company_never_decides_a_tree():
    rule = rule_of()
    alone = grow(rule, 5, tasks=1)
    assert grow(rule, 5, tasks=6)[:1] == alone


def test_same_step_keeps_the_reasoning_and_resamples_the_action():
    rule = rule_of(fork_at="same_step")
    forks = 0
    for seed in range(100):
        (tree,) = grow(rule, seed, rate=0.5)
        check(tree, rule)
        for node, kids in zip(tree.nodes, tree.children(), strict=True):
            if node.id and len(kids) > 1:
                forks += 1
                assert node.response.endswith("</explore>") and not node.action
                assert all(tree.nodes[k].step == node.step for k in kids)
    assert forks > 50


def test_signals():
    for seed in range(30):
        (tree,) = grow(rule_of(8, 8, signal=never), seed)
        assert len(tree.leaf_ids()) == 8 and all(n.granted <= 1 for n in tree.nodes[1:])
        (tree,) = grow(rule_of(8, 1, signal=always), seed, rate=0.0)
        inner = [n for n in tree.nodes[1:] if n.outcome is None]
        assert all(n.requested == 2 for n in inner)
    rates = []
    chance = make_signal("random", 0.25)
    for seed in range(200):
        rule = TreeRule(8, 4, 2, "random", chance)
        (tree,) = grow(rule, seed, rate=0.0)
        rates += [n.requested == 2 for n in tree.nodes[1:] if n.outcome is None]
    assert 0.2 < sum(rates) / len(rates) < 0.3


def test_limits_make_leaves():
    outcomes = set()
    for seed in range(40):
        limits = Limits(max_steps=4, response_tokens=80, path_tokens=(220, 330)[seed % 2])
        (tree,) = grow(rule_of(), seed, limits=limits)
        for i in tree.leaf_ids():
            leaf = tree.nodes[i]
            outcomes.add(leaf.outcome)
            tokens = sum(
                len(tree.nodes[j].response_ids) + len(tree.nodes[j].context_ids)
                for j in tree.path(i)
            )
            assert leaf.step <= 4 and tokens <= limits.path_tokens
            assert leaf.outcome != "step_limit" or leaf.step == 4
    assert outcomes == {"success", "failure", "step_limit", "token_limit"}


@pytest.mark.parametrize(
    "requested, leaves, current, granted",
    [(2, 8, 7, 2), (2, 8, 8, 1), (3, 8, 7, 2), (4, 8, 4, 4), (2, 8, 4, 2)],
)
def test_effective_branch(requested, leaves, current, granted):
    assert effective_branch(requested, leaves, current) == granted


def test_requests_wait_for_the_slowest_leaf_of_their_depth():
    budget = Budget(leaves=4, identity=("t",))
    for root in [(0,), (1,), (2,)]:
        budget.start(root, 0)
    budget.advance((0,), (0, 0), 1)
    assert budget.request((0,), 1, 2)
    budget.advance((1,), (1, 0), 1)
    assert budget.request((1,), 1, 2)
    assert budget.decide() == []  # (2,) has not completed step 1
    budget.finish((2,))
    grants = budget.decide()
    assert sorted(g.granted for g in grants) == [1, 2]  # one leaf was left, order by identity
