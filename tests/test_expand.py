"""Trees grown with a scripted policy: budget, roots, forks, and independence from timing."""

import dataclasses
import itertools
import pathlib
from fractions import Fraction

import pytest
from scripted import (
    DIALOGUE,
    TASK,
    ByteCodec,
    InstantEnvironments,
    PastStep,
    ScriptedEngine,
)

from spark_jax.envs.pool import EnvPool
from spark_jax.envs.toy import COLOURS, ToyEnvironment, toy_tasks
from spark_jax.rollout.budget import Budget, effective_branch
from spark_jax.rollout.dialogue import NO_ACTION
from spark_jax.rollout.expand import grow_trees, leaf_reward
from spark_jax.rollout.growing import Limits, TreeRule
from spark_jax.rollout.identity import host_random
from spark_jax.rollout.reinvest import Place, openness, share_out
from spark_jax.rollout.signals import always, explore, make_signal, never
from spark_jax.rollout.stops import state_after, stop_patterns, stop_table
from spark_jax.run.config import load_config
from spark_jax.run.policy import episode_rule

TOY = str(pathlib.Path(__file__).parents[1] / "configs" / "toy.py")
LIMITS = Limits(max_steps=9, response_tokens=80, path_tokens=900)


def grow(
    rule, seed=0, rate=0.3, latency=0, tasks=1, deterministic=True, limits=LIMITS,
    dialogue=DIALOGUE, engine_fork_at=None,
):  # fmt: skip
    engine = ScriptedEngine(rate, latency, engine_fork_at or rule.fork_at)
    environments = InstantEnvironments(latency=latency)
    several = [dataclasses.replace(TASK, variation=i) for i in range(tasks)]
    trees = grow_trees(
        several, engine, environments, [dialogue] * tasks, [rule] * tasks, limits,
        (seed, "rl", 0),
        deterministic,
    )  # fmt: skip
    assert engine.alive == 0, "pages were lost"
    assert engine.resting, "a learner may want the memory"
    assert not environments.held, "a worker was never given back"
    return trees


def rule_of(leaves=8, roots=4, branch=2, signal=explore, fork_at="next_step", reinvest=False):
    return TreeRule(leaves, roots, branch, signal.__name__, signal, fork_at, reinvest=reinvest)


def check(tree, rule):
    """Every invariant of a tree that was grown with InstantEnvironments."""
    check_shape(tree, rule)
    for leaf in tree.leaf_ids():
        check_path(tree, leaf)


def check_shape(tree, rule):
    """Every invariant of a tree that can be read off the tree alone."""
    children = tree.children()
    leaves = tree.leaf_ids()
    assert len(leaves) <= rule.leaves
    assert len(children[0]) == rule.roots + tree.nodes[0].reinvested
    assert tree.nodes[0].granted == tree.nodes[0].requested == rule.roots
    for node, kids in zip(tree.nodes, children, strict=True):
        assert node.parent < node.id
        if node.id == 0:
            continue
        assert node.response_ids and len(node.response_ids) == len(node.logprobs)
        if kids:
            assert not node.done and node.outcome is None
            assert len(kids) == node.granted + node.reinvested
            assert node.granted <= node.requested <= rule.branch
            assert not node.reinvested or node.granted > 1, "no spark point"
            assert node.context_ids or (rule.fork_at == "same_step" and not node.action)
        else:
            assert node.done and node.outcome and not node.context_ids
            assert node.reward == (node.outcome == "success")
            assert (node.requested, node.granted) == ((0, 0) if node.spark else (1, 1))
            assert not node.reinvested
        if node.granted > 1:
            assert node.spark or rule.signal is not explore
        if rule.fork_at == "same_step" and len(kids) == 1 and tree.nodes[kids[0]].done:
            assert node.action or node.requested == 1, "a step that ends its path asks for nothing"


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


@pytest.mark.parametrize("fork_at, trees", [("next_step", 1000), ("same_step", 200)])
def test_a_thousand_random_trees_spend_what_is_left(fork_at, trees):
    """With `reinvest` every tree is full; what was there before is the tree without it."""
    shapes = itertools.cycle([(8, 4, 2), (8, 1, 3), (16, 2, 4), (5, 5, 2), (7, 3, 3), (2, 1, 2)])
    given = {"root": 0, "spark point": 0}
    for seed, (leaves, roots, branch) in zip(range(trees), shapes, strict=False):
        plain = rule_of(leaves, roots, branch, fork_at=fork_at)
        rule = dataclasses.replace(plain, reinvest=True)
        rate = (0.1, 0.3, 0.6)[seed % 3]
        (tree,) = grow(rule, seed, rate, latency=seed, deterministic=seed % 2 == 0)
        check(tree, rule)
        assert len(tree.leaf_ids()) == leaves
        given["root"] += tree.nodes[0].reinvested
        given["spark point"] += sum(node.reinvested for node in tree.nodes[1:])
        if seed % 4:
            continue
        (before,) = grow(plain, seed, rate)
        assert sum(node.reinvested for node in tree.nodes) == leaves - len(before.leaf_ids())
        kept = without_reinvested(tree)
        assert [n.response for n in kept] == [n.response for n in before.nodes]
        assert [n.outcome for n in kept] == [n.outcome for n in before.nodes]
    assert min(given.values()) > trees / 10, given


def without_reinvested(tree):
    """The nodes that were there before the leftover was spent: the last children came later."""
    late = set()
    for node, kids in zip(tree.nodes, tree.children(), strict=True):
        late |= set(kids) if node.id in late else set(kids[len(kids) - node.reinvested :])
    return [node for node in tree.nodes if node.id not in late]


def test_the_leftover_goes_where_the_rule_says():
    """Recomputed from the finished tree."""
    for seed in range(100):
        (tree,) = grow(rule_of(branch=3, roots=2, leaves=12, reinvest=True), seed, rate=0.3)
        before = {node.id for node in without_reinvested(tree)}
        counts = {node.id: [0, 0] for node in tree.nodes}
        for leaf in before & set(tree.leaf_ids()):
            for node in tree.path(leaf):
                counts[node][0] += tree.nodes[leaf].outcome == "success"
                counts[node][1] += 1
        places = [
            Place(tuple(tree.path(i)), *counts[i])
            for i in sorted(before)
            if i == 0 or tree.nodes[i].granted > 1
        ]
        left = 12 - len(before & set(tree.leaf_ids()))
        wanted = {who[-1]: n for who, n in share_out(places, left).items()}
        assert {n.id: n.reinvested for n in tree.nodes if n.reinvested} == wanted


def test_a_late_root_is_the_root_it_would_have_been():
    """Keys come from identity: when a leaf was given does not change what it samples."""
    for seed in range(20):
        (late,) = grow(rule_of(6, 2, signal=never, reinvest=True), seed)
        (early,) = grow(rule_of(6, 6, signal=never), seed)
        assert [n.response for n in late.nodes] == [n.response for n in early.nodes]
        assert late.nodes[0].reinvested == 4


class Guesser(ScriptedEngine):
    """Guesses doors, and doubts now and then."""

    def script(self, row):
        draw = host_random(row.key.tolist())
        tag = "explore" if draw.random() < self.explore_rate else "think"
        return list(f"<{tag}>?</{tag}><action>open {draw.choice(COLOURS[:3])}</action>".encode())


def test_late_leaves_play_on_from_the_state_of_their_node():
    """In real environments, be there one or several; nothing else is alive any more by then."""
    rule = rule_of(12, 2, branch=2, reinvest=True)
    tasks, grown, deep = toy_tasks(4, 3, count=30), [], 0
    for workers in (1, 3):
        with EnvPool(ToyEnvironment, workers) as pool:
            grown.append(
                grow_trees(
                    tasks,
                    Guesser(0.3, workers),
                    pool,
                    [DIALOGUE] * 30,
                    [rule] * 30,
                    LIMITS,
                    (0, "rl", 0),
                )  # fmt: skip
            )
            assert pool.stats["replay_steps"] > 0 and pool.stats["replay_mismatches"] == 0
    assert grown[0] == grown[1]
    for tree in grown[0]:
        check_shape(tree, rule)
        assert len(tree.leaf_ids()) == 12
        deep += sum(node.reinvested for node in tree.nodes[1:])
        for leaf in tree.leaf_ids():
            environment = ToyEnvironment()
            environment.start(tree.task)
            for i in tree.path(leaf)[1:]:
                node = tree.nodes[i]
                assert environment.step(node.action).observation == node.observation
    assert deep > 10


def test_the_state_after_a_text_is_that_of_the_table():
    table = stop_table([bytes([i]) for i in range(256)], stop_patterns("same_step"))
    for text in ("", "<", "><", "></", "</a", "</ex", "</ac<", "go</</action", "</é"):
        state = 0
        for byte in text.encode():
            state = table[state, byte]
        assert state_after(text, stop_patterns("same_step")) == state


def test_openness_by_hand():
    assert openness(Place((), 0, 0)) == Fraction(1, 4)
    assert openness(Place((), 0, 1)) == openness(Place((), 1, 1)) == Fraction(2, 9)
    assert openness(Place((), 2, 2)) == Fraction(3, 16)
    assert openness(Place((), 1, 2)) == openness(Place((), 3, 6)) == Fraction(1, 4)


@pytest.mark.parametrize(
    "places, left, given",
    [
        # No spark point: new roots, whatever is known.
        ([Place((), 0, 4)], 3, {(): 3}),
        # 1/4 (mixed) against 3/16 (two failures): 1/4, 3/16, 1/8, 3/32, 1/12, ...
        ([Place((), 0, 9), Place((0,), 1, 2), Place((1,), 0, 2)], 2, {(0,): 1, (1,): 1}),
        ([Place((), 0, 9), Place((0,), 1, 2), Place((1,), 0, 2)], 4, {(0,): 2, (1,): 2}),
        # The roots differ, each spark point's leaves agree: 1/4 > 3/16.
        ([Place((), 2, 4), Place((0,), 2, 2), Place((1,), 0, 2)], 1, {(): 1}),
        # Equals: the deeper one, then the first.
        ([Place((), 1, 2), Place((0,), 1, 2), Place((1, 0), 1, 2)], 1, {(1, 0): 1}),
        ([Place((2, 0), 1, 2), Place((1, 0), 1, 2)], 1, {(1, 0): 1}),
        ([Place((), 1, 2)], 0, {}),
    ],
)
def test_share_out_by_hand(places, left, given):
    assert share_out(places, left) == given
    assert share_out(places[::-1], left) == given


def test_an_episode_goes_on_after_a_stop_at_explore():
    """Where the sampler stops after an <explore>, evaluated episodes have its action too."""
    config = load_config(TOY, ["tree.fork_at=same_step"])
    split = 0
    for seed in range(20):
        (tree,) = grow(episode_rule(config), seed, rate=0.5, engine_fork_at="same_step")
        assert len(tree.leaf_ids()) == 1
        split += sum(node.response.endswith("</explore>") for node in tree.nodes)
        for node in tree.nodes:
            assert node.observation != NO_ACTION or node.response.endswith("I forgot")
    assert split > 10


def test_a_token_that_ends_the_reasoning_may_begin_the_next_tag():
    """Its beginning counts for all children of a fork within the step: here a token `></`."""
    token = 255

    class Pieces(ByteCodec):
        def decode(self, ids):
            return b"".join(b"></" if i == token else bytes([i]) for i in ids).decode()

    class Watched(ScriptedEngine):
        starts = []

        def add(self, row):
            if row.budget:
                self.starts.append((row.tokens[-1] == token, row.stop))
            super().add(row)

        def script(self, row):
            if row.tokens[-1] == token:
                return list(b"action><action>look</action>")
            return [*b"<explore>?</explore", token]

    engine, rule = Watched(1.0), rule_of(8, 2, fork_at="same_step")
    dialogue = dataclasses.replace(DIALOGUE, codec=Pieces())
    limits = dataclasses.replace(LIMITS, max_steps=3)
    (tree,) = grow_trees(
        [TASK], engine, InstantEnvironments(), [dialogue], [rule], limits, (0, "rl", 0)
    )
    assert any(node.granted > 1 for node in tree.nodes[1:])
    table = stop_table([b"<", b"/"], stop_patterns("same_step"))
    begun = table[table[0, 0], 1]
    assert begun != 0 and set(engine.starts) == {(False, 0), (True, begun)}


@pytest.mark.parametrize("reinvest", [False, True])
@pytest.mark.parametrize("fork_at", ["next_step", "same_step"])
def test_latency_never_decides_a_tree(fork_at, reinvest):
    rule = rule_of(branch=3, roots=2, fork_at=fork_at, reinvest=reinvest)
    for seed in range(25):
        calm = grow(rule, seed, tasks=3)
        for latency in (1, 2, 3):
            assert grow(rule, seed, latency=latency, tasks=3, deterministic=False) == calm


@pytest.mark.parametrize("reinvest", [False, True])
def test_company_never_decides_a_tree(reinvest):
    rule = rule_of(reinvest=reinvest)
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
    "kind, outcome, score, reward",
    [
        ("success", "success", 70.0, 1.0),  # the environment's word, whatever it scores
        ("success", "failure", 70.0, 0.0),
        ("score", "failure", 70.0, 0.7),
        ("score", "step_limit", -100.0, 0.0),
        ("score", "success", 100.0, 1.0),
    ],
)
def test_reward_of_a_leaf_by_hand(kind, outcome, score, reward):
    assert leaf_reward(kind, outcome, score) == reward


def test_score_as_reward_tells_failures_apart_and_changes_nothing_else():
    rewards = set()
    for seed in range(40):
        (plain,), (scored,) = (
            grow(dataclasses.replace(rule_of(), reward=kind), seed) for kind in ("success", "score")
        )
        leaves = [plain.nodes[i] for i in plain.leaf_ids()]
        assert [leaf.reward for leaf in leaves] == [leaf.outcome == "success" for leaf in leaves]
        for node, other in zip(plain.nodes, scored.nodes, strict=True):
            assert dataclasses.replace(other, reward=node.reward) == node
            assert other.reward == (other.score / 100 if other.outcome else 0)
            rewards.add(other.reward)
    assert rewards == {0.0, 0.4, 1.0}


@pytest.mark.parametrize("fork_at", ["next_step", "same_step"])
@pytest.mark.parametrize("patience", [1, 2])
def test_patience_cuts_paths_at_refusals_in_a_row_and_changes_nothing_else(patience, fork_at):
    """Roots that never fork, so each path with patience is that without, up to where it is cut.
    Reasoning that stands in a node of its own (same_step) is no action and breaks no row."""
    cut = split = 0
    for seed in range(150):
        rule = rule_of(signal=never, fork_at=fork_at)
        (whole,), (short,) = (
            grow(each, seed, rate=0.5)
            for each in (rule, dataclasses.replace(rule, patience=patience))
        )
        for end, other in zip(whole.leaf_ids(), short.leaf_ids(), strict=True):
            expected, row = [], 0
            for i in whole.path(end)[1:]:
                node = whole.nodes[i]
                expected.append(node.response)
                if node.action or not node.valid:
                    row = 0 if node.valid else row + 1
                split += not node.action and node.valid
                if row >= patience:
                    break
            leaf = short.nodes[other]
            assert [short.nodes[i].response for i in short.path(other)[1:]] == expected
            if node.outcome not in ("success", "failure") and row >= patience:
                assert leaf.outcome == "refused" and leaf.reward == 0
                cut += 1
            else:
                assert leaf.outcome == node.outcome
    assert cut > 10 and (split > 100) == (fork_at == "same_step")


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
