"""Trees whose prompts are rebuilt at each step: what the prompts say, and what of them is computed
once."""

import dataclasses

import jax
import numpy as np
import pytest
from dense import dense_logprobs
from scripted import DIALOGUE, TASK, ByteCodec, InstantEnvironments
from test_expand import LIMITS, check, grow, rule_of

from spark_jax.envs.window import Window, window_message
from spark_jax.models.config import ModelConfig
from spark_jax.models.transformer import init_params
from spark_jax.rollout.engine import Engine
from spark_jax.rollout.engine_shape import EngineShape
from spark_jax.rollout.expand import grow_trees
from spark_jax.rollout.growing import Limits, TreeRule
from spark_jax.rollout.sampler import Sampler
from spark_jax.rollout.signals import make_signal
from spark_jax.rollout.stops import stop_table
from spark_jax.types import PastStep, Start


def windowed(k, style="short"):
    return dataclasses.replace(DIALOGUE, window=Window(k, style))


@pytest.mark.parametrize("k, style", [(1, "short"), (2, "full"), (5, "short")])
@pytest.mark.parametrize("fork_at", ["next_step", "same_step"])
def test_every_prompt_is_that_of_its_path(k, style, fork_at):
    rule, cut = rule_of(fork_at=fork_at, reinvest=k < 5), 0
    for seed in range(20):
        (tree,) = grow(rule, seed, rate=0.4, dialogue=windowed(k, style))
        check(tree, rule)
        assert tree.rebuilt
        first = f"goal {tree.task.variation}: a room"
        for i, kids in enumerate(tree.children()):
            node = tree.nodes[i]
            if not kids or not node.context_ids:
                continue
            turns = [tree.nodes[j] for j in tree.path(i)[1:]]
            past = [PastStep(n.action, n.observation) for n in turns if n.observation]
            user = window_message(first, past, Window(k, style)) if i else first
            assert node.prompt == f"play\n{user}"
            assert node.context_ids == ByteCodec().encode_prompt("play", user)
            cut += len(past) > k
    assert cut > 20 or k == 5


def test_latency_never_decides_a_tree_of_rebuilt_prompts():
    rule = rule_of(branch=3, roots=2)
    for seed in range(10):
        calm = grow(rule, seed, tasks=3, dialogue=windowed(2))
        for latency in (1, 2):
            timed = grow(
                rule, seed, latency=latency, tasks=3, deterministic=False, dialogue=windowed(2)
            )
            assert timed == calm


def test_a_prompt_that_leaves_no_room_ends_its_path():
    """The limit of tokens is for a step's prompt and response: short windows run longer."""
    limits = dataclasses.replace(LIMITS, path_tokens=260)
    outcomes = {0: set(), 1: set(), 9: set()}
    for k, seen in outcomes.items():
        for seed in range(30):
            (tree,) = grow(rule_of(), seed, limits=limits, dialogue=windowed(k))
            seen |= {tree.nodes[i].outcome for i in tree.leaf_ids()}
            for node in tree.nodes:
                assert not k or len(node.context_ids) + limits.response_tokens <= 260
    assert "token_limit" not in outcomes[1]
    assert "token_limit" in outcomes[0] & outcomes[9]


# --- with a model ---------------------------------------------------------------------------------

CONFIG = ModelConfig(
    vocab_size=256, layers=2, width=32, heads=4, kv_heads=2, head_dim=8, feed_forward=48
)


@pytest.fixture(scope="module")
def params():
    tree = init_params(CONFIG, jax.random.key(0))
    return jax.tree.map(lambda x: x * 6 if x.ndim == 2 else x, tree)


class Wordy(InstantEnvironments):
    """A task that takes some words to say: the head that all prompts share."""

    def answer(self, task, past, action):
        result = super().answer(task, past, action)
        if action is None:
            return Start("a long task, " * 8, "a room")
        return result


class Talkative(ByteCodec):
    """Bytes of the model as an action: every response has one."""

    def decode(self, ids):
        return f"<think></think><action>{sum(ids) % 10} {sum(ids) % 7}</action>"


TWO = dataclasses.replace(windowed(2), codec=Talkative())


def sample(params, dialogue=TWO, pages=600, steps=5, **shape):
    """A tree of eight leaves, and the engine that sampled it."""
    sizes = dict(rows=8, slots=8, path_tokens=320, chunk=5, prefill_tokens=128) | shape
    table = stop_table([bytes([i]) for i in range(256)], ["\xff\xff"])
    shape = EngineShape(pages=pages, **sizes)
    engine = Engine(Sampler(CONFIG, shape, table, ByteCodec.end_of_turn_id))
    engine.use(params, 1.0)
    rule = TreeRule(8, 2, 2, "random", make_signal("random", 0.5))
    (tree,) = grow_trees(
        [TASK], engine, Wordy(), [dialogue], [rule], Limits(steps, 9, 320), (0, "rl", 0)
    )
    assert engine.pool.used_pages == 0
    return tree, engine.stats


def test_what_was_kept_is_what_the_prompt_says(params):
    """Every response has the log-probs of a plain pass over its own prompt and itself."""
    tree, stats = sample(params)
    assert len(tree.leaf_ids()) == 8 and max(n.step for n in tree.nodes) == 5
    for node in tree.nodes[1:]:
        prompt = tree.nodes[node.parent].context_ids
        expected = dense_logprobs(params, CONFIG, prompt + node.response_ids, len(prompt))
        np.testing.assert_allclose(node.logprobs, expected, atol=3e-5)


def test_the_head_is_computed_once_for_a_tree(params, monkeypatch):
    """Tokens prefilled: with sharing, and with every rebuilt prompt computed anew."""
    tree, stats = sample(params)
    with monkeypatch.context() as patch:
        keep = Engine.keep
        patch.setattr(Engine, "keep", lambda self, pages, tokens: keep(self, pages, 0))
        same, whole = sample(params)
    assert [n.response_ids for n in same.nodes] == [n.response_ids for n in tree.nodes]
    prompts = [n.context_ids for n, kids in zip(tree.nodes, tree.children(), strict=True) if kids]
    assert whole.prefill_tokens == sum(len(p) - 1 for p in prompts)
    # By hand: each prompt lacks what it does not share with the path before it; the last token of
    # either is never prefilled.
    lacking = len(prompts[0]) - 1
    for node, kids in zip(tree.nodes[1:], tree.children()[1:], strict=True):
        if kids:
            before = tree.nodes[node.parent].context_ids + node.response_ids
            pairs = zip(before[:-1], node.context_ids[:-1], strict=False)
            shared = [a == b for a, b in pairs]
            lacking += len(node.context_ids) - 1 - [*shared, False].index(False)
    assert stats.prefill_tokens == lacking < 0.4 * whole.prefill_tokens


def test_a_pool_too_small_for_the_tree_gives_the_same_tree(params):
    tree, _ = sample(params)
    small, stats = sample(params, pages=42)
    assert stats.evictions > 0
    assert [n.response_ids for n in small.nodes] == [n.response_ids for n in tree.nodes]


def test_a_prompt_that_comes_again_is_sampled_again(params):
    """A window of one step in which nothing changes: the same prompt, another response."""

    class Stubborn(Talkative):
        def decode(self, ids):
            return "<think></think><action>look</action>"

    class Silent(Wordy):
        def answer(self, task, past, action):
            result = super().answer(task, past, action)
            return result if action is None else result._replace(observation="nothing")

    dialogue = dataclasses.replace(windowed(1), codec=Stubborn())
    table = stop_table([bytes([i]) for i in range(256)], ["\xff\xff"])
    shape = EngineShape(8, 8, 600, 320, 5, 128)
    engine = Engine(Sampler(CONFIG, shape, table, ByteCodec.end_of_turn_id))
    engine.use(params, 1.0)
    (tree,) = grow_trees(
        [TASK], engine, Silent(), [dialogue], [rule_of(1, 1)], Limits(5, 9, 320), (0, "rl", 0)
    )
    prompts = [n.context_ids for n in tree.nodes[2:-1]]
    assert len(prompts) == 3 and prompts[0] == prompts[1] == prompts[2]
    assert len({tuple(n.response_ids) for n in tree.nodes[1:]}) == 5
