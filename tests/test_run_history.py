"""Whole runs with prompts that are rebuilt at each step, on the toy environment."""

import numpy as np
import pytest
from scripted import ScriptedEngine
from small_run import SETTINGS
from test_learn_rows import linear_logps, random_params, rebuilt_tree, small_config, step_tables
from test_run_methods import QUICK, SEPARATE, TOY, killed_and_resumed, play, rl_lines

from spark_jax.envs.pool import EnvPool
from spark_jax.envs.window import Window, window_message
from spark_jax.learn.credit import sft_weights
from spark_jax.learn.preference import pair_leaves
from spark_jax.learn.rows import to_pack
from spark_jax.models.chat import Codec
from spark_jax.models.presets import load_model
from spark_jax.report import main as report
from spark_jax.rollout.dialogue import Dialogue
from spark_jax.rollout.expand import grow_trees
from spark_jax.rollout.growing import Limits
from spark_jax.run import preference, warmup
from spark_jax.run.config import load_config
from spark_jax.run.metrics import read_metrics
from spark_jax.run.policy import Policy, episode_rule, rl_steps
from spark_jax.run.preference import learn_pairs
from spark_jax.run.treefile import read_trees, tree_path
from spark_jax.run.worlds import make_world
from spark_jax.types import PastStep, UserError

HISTORY = ["env.history=1", "env.max_steps=4"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("history") / "whole"
    play(folder, *HISTORY, *QUICK, "rl.rename=0.5")
    return folder


def test_sampler_and_trainer_see_the_same_prompts(whole):
    lines = rl_lines(whole)
    assert len(lines) == 3
    for row in lines:
        assert row["train/logp_gap"] < 1e-5
        # Rows share their heads in the sampler and in the learner.
        assert row["rollout/prefill_tokens"] < 0.5 * row["rollout/linear_tokens"]
        assert row["train/packed_tokens"] < 0.6 * row["train/linear_tokens"]
        assert row["train/linear_tokens"] == row["rollout/linear_tokens"]


def test_the_tree_file_has_each_prompt_as_sampled(whole):
    inner = cut = 0
    for iteration in range(3):
        for tree in read_trees(tree_path(whole, iteration)):
            nodes = tree["nodes"]
            parents = {node["parent"] for node in nodes}
            for node in nodes[1:]:
                if node["id"] not in parents:
                    continue
                past, at = [], node
                while at["id"]:
                    past.insert(0, PastStep(at["action"], at["observation"]))
                    at = nodes[at["parent"]]
                assert node["prompt"] == window_message(nodes[0]["prompt"], past, Window(1))
                assert node["prompt_tokens"] > nodes[0]["prompt_tokens"]
                inner, cut = inner + 1, cut + (len(past) > 1)
    assert inner > 20 and cut > 5


def test_a_report_is_made(whole):
    report([str(whole)])
    assert (whole / "report.html").stat().st_size > 10_000


def test_a_killed_run_goes_on_as_if_nothing_had_been(whole, tmp_path, monkeypatch):
    settings = [*HISTORY, *QUICK, "rl.rename=0.5"]
    killed_and_resumed(tmp_path, monkeypatch, settings, at=2)
    assert rl_lines(tmp_path) == rl_lines(whole)
    for iteration in range(3):
        a, b = (read_trees(tree_path(f, iteration)) for f in (whole, tmp_path))
        assert a == b


def test_a_warm_up_of_other_prompts_is_refused(whole, tmp_path):
    with pytest.raises(UserError, match="config.env.history=1, not 0"):
        play(tmp_path, *QUICK, f"sft.from_run={whole}")
    with pytest.raises(UserError, match="config.env.prompt=short, not full"):
        play(tmp_path, *HISTORY, *QUICK, "env.prompt=full", f"sft.from_run={whole}")


@pytest.mark.parametrize("method", ["grpo", "gigpo", "eto", "rlvmr"])
def test_other_methods_learn_from_rebuilt_prompts(method, tmp_path):
    play(tmp_path, *HISTORY, f"algo.name={method}", "rl.rename=0", "rl.iterations=2", *SEPARATE)
    lines = rl_lines(tmp_path)
    assert len(lines) == 2
    if method == "eto":
        assert all(row["train/pairs"] > 0 for row in lines)
        assert all(row["train/margin"] > 0 for row in lines)
    else:
        assert all(row["train/logp_gap"] < 1e-5 for row in lines)
    assert all(row["train/packed_tokens"] < row["train/linear_tokens"] for row in lines)
    assert [r["phase"] for r in read_metrics(tmp_path)][-1] == "eval"


def test_eto_compares_whole_paths(tmp_path, monkeypatch):
    """What the paths of the pairs sum up to, against every row by itself through the model."""
    trees = [rebuilt_tree(seed, leaves=5, vocab=64) for seed in (1, 2)]
    overrides = ["algo.name=eto", "rl.minibatches=1", "rl.temperature=0.8"]
    config = load_config(TOY, [*overrides, "rollout.path_tokens=160", "train.row_tokens=256"])
    model = small_config("float32")
    policy, params = Policy(model, None, None, None), random_params(model, 0)
    tokens, owner, whose = step_tables(trees)
    logp_NT = np.asarray(linear_logps(model, params, tokens)[0])
    total = {}
    for r, who in enumerate(whose):
        total[who] = total.get(who, 0.0) + logp_NT[r, owner[r, 1:] >= 0].sum()
    expected = [
        total[k, a] - total[k, b]
        for k, tree in enumerate(trees)
        for a, b in pair_leaves(tree, None)
    ]
    calls, weigh = [], preference.path_coefficients

    def watched(*args):
        calls.append(args)
        return weigh(*args)

    monkeypatch.setattr(preference, "path_coefficients", watched)
    steps = rl_steps(config, policy)
    learned = learn_pairs(config, 0, trees, {}, steps, policy, params, steps.init(params), [0])
    assert learned.metrics["train/pairs"] == len(expected) > 2
    ((logp_S, _, pairs, _),) = calls
    got = logp_S[pairs.better_P] - logp_S[pairs.worse_P]
    np.testing.assert_allclose(got, expected, rtol=1e-3)


# --- the warm-up ----------------------------------------------------------------------------------


class Recited(ScriptedEngine):
    """Says an expert's responses, one after the other."""

    def __init__(self, responses, end):
        super().__init__(0.0)
        self.responses, self.end_of_turn = list(responses), end

    def script(self, row):
        return self.responses.pop(0)


@pytest.mark.parametrize("style", ["short", "full"])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_what_is_trained_is_what_is_sampled(k, style):
    """An expert's path, sampled word by word, is the warm-up's tree of it, token by token."""
    overrides = [*SETTINGS, f"env.history={k}", f"env.prompt={style}", "env.tasks=doors-2x3+1"]
    config = load_config(TOY, overrides)
    world = make_world(config)
    examples = warmup.expert_examples(world, 4, 0, 1, None, lambda *_: None)
    model = load_model("nano", texts=warmup.texts(examples))
    policy = Policy(model.config, None, model.codec, None)
    dialogue = Dialogue(model.codec, world.system, world.first_message, window=world.window)
    for example in examples:
        taught = warmup.dialogue_tree(example, policy, 2000, world.window)
        said = [model.codec.encode_response(text) for text, _ in example.turns]
        with EnvPool(world.make_env, 1) as environments:
            (sampled,) = grow_trees(
                [example.task], Recited(said, model.codec.end_of_turn_id), environments,
                [dialogue], [episode_rule(config)], Limits(9, 100, 2000), (0, "rl", 0),
            )  # fmt: skip
        assert sampled.rebuilt == taught.rebuilt == (k > 0)
        assert len(sampled.nodes) == len(taught.nodes) == 5
        assert sampled.nodes[-1].outcome == "success"
        for ours, theirs in zip(sampled.nodes[:-1], taught.nodes, strict=False):
            assert ours.context_ids == theirs.context_ids
            assert ours.response_ids == theirs.response_ids


def test_the_warm_up_learns_from_the_rows(whole):
    """An epoch packs every dialogue's prompts with what they share laid out once."""
    examples = warmup.load_examples(whole / "warmup.jsonl")
    policy = Policy(None, None, Codec.load(whole / "tokenizer"), None)
    tokens = 0
    for example in examples:
        tree = warmup.dialogue_tree(example, policy, 256, Window(1))
        rows = to_pack(tree, sft_weights(tree)).tree
        tokens += sum(len(n.response_ids) + len(n.context_ids) for n in rows.nodes)
    packed = [r["train/packed_tokens"] for r in read_metrics(whole) if r["phase"] == "sft"]
    assert packed == [tokens] * 2


def test_a_long_step_ends_the_warm_ups_path():
    """By row: with a window only prompts that are too long themselves are left out."""
    world = make_world(load_config(TOY, [*SETTINGS, "env.tasks=doors-4x3", "env.history=1"]))
    examples = warmup.expert_examples(world, 4, 0, 1, None, lambda *_: None)
    model = load_model("nano", texts=warmup.texts(examples))
    policy = Policy(model.config, None, model.codec, None)
    example = examples[0]

    def steps(k, row_tokens):
        tree = warmup.dialogue_tree(example, policy, row_tokens, Window(k))
        return len(tree.nodes) - 1

    rows = warmup.dialogue_tree(example, policy, 2000, Window(1)).nodes
    pairs = zip(rows, rows[1:], strict=False)
    longest = max(len(before.context_ids) + len(node.response_ids) for before, node in pairs)
    assert steps(1, longest) == steps(0, 2000) == 4
    assert steps(0, longest) < 4 and steps(1, longest - 1) < 4
