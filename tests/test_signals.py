"""Signals that look at how sure the model is, alone and in growing trees."""

import dataclasses

import pytest
from scripted import DIALOGUE, END, TASK, ByteCodec, InstantEnvironments, ScriptedEngine
from test_learn_advantage import forked_tree

from spark_jax.rollout.dialogue import Dialogue
from spark_jax.rollout.expand import grow_trees
from spark_jax.rollout.growing import Limits, TreeRule
from spark_jax.rollout.identity import host_random
from spark_jax.rollout.reliability import count_forks, reliabilities
from spark_jax.rollout.signals import Step, make_signal, rise

LIMITS = Limits(max_steps=9, response_tokens=80, path_tokens=900)


@pytest.mark.parametrize(
    "surprises, expected",
    [
        ((0.7,), 0.0),  # nothing before it
        ((0.5, 0.75), 0.25),
        ((0.5, 1.0, 1.25), 0.5),  # over (0.5 + 1.0) / 2
        ((0.5, 1.0, 9.0, 0.5), -0.25),  # the third step is not among the first
    ],
)
def test_rise_by_hand(surprises, expected):
    assert rise(surprises) == pytest.approx(expected)


def test_entropy_fires_above_its_threshold_only():
    signal = make_signal("entropy", 0.0, 0.25)
    assert [signal(Step(True, (0.5, x), ())) for x in (0.7, 0.75, 0.76)] == [False, False, True]


def test_surprise_is_that_of_the_reasoning():
    text = "<think>a</think><action>go</action>"
    reasoning = len("<think>a</think>")
    logprobs = [-0.5] * (reasoning - 1) + [-2.0] + [-9.0] * (len(text) - reasoning)
    expected = (0.5 * (reasoning - 1) + 2.0) / reasoning
    assert DIALOGUE.surprise(list(text.encode()), logprobs) == pytest.approx(expected)
    assert DIALOGUE.surprise(list(b"<action>go</action>"), [-1.0] * 18 + [-20.0]) == 2.0
    assert DIALOGUE.surprise(list(b"<action>go</action>!"), [-1.0] * 19 + [-21.0]) == 2.0
    assert DIALOGUE.surprise([], []) == 0.0
    # The end-of-turn token and what follows the block count for nothing.
    ended = [*b"<think>a</think>", END]
    assert DIALOGUE.surprise(ended, [-0.5] * reasoning + [-9.0]) == 0.5


def test_the_token_that_completes_the_block_counts_whatever_else_it_holds():
    class Words(ByteCodec):
        def token_bytes(self):
            return [b"", b"<think>", b"a", b"</thi", b"nk><act", b"ion>go</action>"]

    dialogue = dataclasses.replace(DIALOGUE, codec=Words())
    assert dialogue.surprise([1, 2, 3, 4, 5], [-1.0, -2.0, -3.0, -6.0, -90.0]) == 3.0
    swapped = dataclasses.replace(dialogue, swap={2: 5, 5: 2})
    assert swapped.surprise([1, 5, 3, 4, 2], [-1.0, -2.0, -3.0, -6.0, -90.0]) == 3.0
    assert swapped.surprise([1, 5, 2], [-1.0, -2.0, -6.0]) == 3.0


def test_surprise_is_measured_only_where_the_signal_looks_at_it(monkeypatch):
    def fail(*_):
        raise AssertionError("nobody asked")

    monkeypatch.setattr(Dialogue, "surprise", fail)
    engine = MoodyEngine(0.3)
    for name in ("explore", "random"):
        rule = TreeRule(8, 2, 2, name, make_signal(name, 0.5))
        grow_trees(
            [TASK], engine, InstantEnvironments(), [DIALOGUE], [rule], LIMITS, (0, "rl", 0)
        )  # fmt: skip
    with pytest.raises(AssertionError, match="nobody asked"):
        grow("entropy", 0)


class MoodyEngine(ScriptedEngine):
    """How sure it is of a response depends on the response's identity; of its action it is not."""

    def logprobs(self, row):
        reasoning = len(bytes(row.response).partition(b"<action>")[0])
        sure = -host_random("mood", row.key.tolist()).random()
        return [sure] * reasoning + [-50.0] * (len(row.response) - reasoning)


def grow(name, seed, latency=0, tasks=1, counts=None, explore_rate=0.3):
    engine = MoodyEngine(explore_rate, latency)
    rule = TreeRule(8, 2, 2, name, make_signal(name, 0.0, 0.1, counts), surprise=True)
    several = [dataclasses.replace(TASK, variation=i) for i in range(tasks)]
    return grow_trees(
        several, engine, InstantEnvironments(latency=latency), [DIALOGUE] * tasks, [rule] * tasks,
        LIMITS, (seed, "rl", 0), latency == 0,
    )  # fmt: skip


def high(tree, node):
    return rise([tree.nodes[i].surprise for i in tree.path(node.id)[1:]]) > 0.1


def test_entropy_decides_a_tree_and_timing_does_not():
    asked = 0
    for seed in range(40):
        (tree,) = grow("entropy", seed)
        for node in tree.nodes[1:]:
            if node.outcome is None:
                assert (node.requested == 2) == high(tree, node)
                asked += node.requested == 2
        assert max(node.surprise for node in tree.nodes) <= 1.0
        assert grow("entropy", seed, latency=seed + 1, tasks=3)[0] == tree
    assert asked > 40


def test_the_more_reliable_source_decides():
    tag, entropy = {"explore": (900, 1000)}, {"entropy": (900, 1000)}
    tag["entropy"] = entropy["explore"] = (100, 1000)
    seen = set()
    for seed in range(20):
        (tree,) = grow("calibrated", seed, counts=tag)
        inner = [n for n in tree.nodes[1:] if n.outcome is None]
        assert all((n.requested == 2) == n.spark for n in inner)
        (tree,) = grow("calibrated", seed, counts=entropy)
        inner = [n for n in tree.nodes[1:] if n.outcome is None]
        assert all((n.requested == 2) == high(tree, n) for n in inner)
        seen |= {(n.spark, high(tree, n)) for n in inner}
    assert len(seen) == 4


def test_equal_sources_decide_equally_often_and_a_draw_repeats_itself():
    def decides(counts):
        signal = make_signal("calibrated", 0.0, 0.1, counts)
        steps = [Step(True, (0.0, 0.0), (0, "rl", i)) for i in range(400)]  # only the tag fires
        assert [signal(step) for step in steps] == [signal(step) for step in steps]
        return sum(signal(step) for step in steps) / 400

    assert 0.4 < decides({"explore": (1, 2), "entropy": (1, 2)}) < 0.6
    # Of three forks each, all against none: P(Beta(4, 1) > Beta(1, 4)) = 69/70.
    assert decides({"explore": (3, 3), "entropy": (0, 3)}) > 0.95
    assert decides({"explore": (0, 3), "entropy": (3, 3)}) < 0.05


def test_a_source_that_is_never_heard_stops_no_fork():
    """A policy that has given up the tag would else lose most forks at a rise of entropy."""

    def forks(counts, spark=False, surprises=(0.0, 1.0)):
        signal = make_signal("calibrated", 0.0, 0.1, counts)
        return {signal(Step(spark, surprises, (0, "rl", i))) for i in range(200)}

    assert forks({}) == {True} and forks({}, True, (0.0,)) == {True}
    assert forks({}, False, (0.0,)) == {False}
    silent = {"entropy": (20.0, 100.0)}
    assert forks(silent) == {True}
    assert forks(silent | {"explore": (0.0, 0.9)}) == {True}  # what it said has faded
    assert forks(silent | {"explore": (2.0, 10.0)}) == {True, False}
    # It is heard again when it speaks.
    assert forks(silent, True, (0.0, 0.0)) == {True, False}


def test_forks_are_counted_for_the_sources_that_fired():
    """forked_tree forks at node 1 (children end in 0 and 1) and below it at node 4 (0 and 1)."""
    tree = forked_tree((0.0, 0.0, 0.0, 1.0))
    tree.nodes[1].surprise, tree.nodes[4].surprise = 0.5, 0.75
    tree.nodes[1].spark = True
    counts = count_forks({}, [tree], 0.2)
    assert counts == {"explore": [1, 1], "entropy": [1, 1]}
    tree.nodes[6].reward = 0.0  # now no fork splits, and both fire at node 4
    tree.nodes[4].spark = True
    again = count_forks(counts, [tree], 0.2)
    assert again == {"explore": [0.9, 2.9], "entropy": [0.9, 1.9]}  # the past fades
    assert counts == {"explore": [1, 1], "entropy": [1, 1]}
    means = {"rollout/reliability_explore": 1.9 / 4.9, "rollout/reliability_entropy": 1.9 / 3.9}
    assert reliabilities(again) == pytest.approx(means)
