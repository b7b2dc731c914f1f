"""Whole runs of methods other than the default, on the toy environment."""

import dataclasses
import json
import pathlib

import pytest
from small_run import SETTINGS

from spark_jax.envs.response import METAREASONING, parse_response
from spark_jax.run import borrow, loop, preference, reinforce
from spark_jax.run.config import load_config
from spark_jax.run.metrics import read_metrics
from spark_jax.run.treefile import read_trees, tree_path
from spark_jax.run.worlds import make_world
from spark_jax.types import Task, UserError

TOY = str(pathlib.Path(__file__).parents[1] / "configs" / "toy.py")


def play(folder, *settings):
    return loop.run(load_config(TOY, [*SETTINGS, *settings]), folder)


def rl_lines(folder):
    """The lines of RL in metrics.jsonl, without what may differ."""
    return [
        {k: v for k, v in row.items() if not k.startswith("time/")}
        for row in read_metrics(folder)
        if row["phase"] == "rl"
    ]


class Killed(Exception):
    pass


def killed_and_resumed(folder, monkeypatch, settings, at):
    """A run that ends when it writes trees for the `at`-th time, then the same again."""
    calls, real = [], reinforce.write_trees

    def once(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(reinforce, "write_trees", once)
    with pytest.raises(Killed):
        play(folder, *settings)
    play(folder, *settings)
    monkeypatch.undo()
    assert len(calls) > at


QUICK = ["sft.epochs=2", "sft.panel=0", "eval.episodes=1"]


def test_reliabilities_survive_a_crash(tmp_path, monkeypatch):
    """The crash loses an iteration that was done, and with it what it had counted."""
    settings = ["tree.signal=calibrated", "tree.signal_rise=0", "tree.roots=2", *QUICK]
    settings += ["checkpoint.every=2", "rl.iterations=4"]
    play(tmp_path / "whole", *settings)
    killed_and_resumed(tmp_path / "killed", monkeypatch, settings, at=4)
    lines = rl_lines(tmp_path / "whole")
    assert rl_lines(tmp_path / "killed") == lines and len(lines) == 4
    assert sum(row["rollout/forks"] for row in lines[:3]) > 0, "nothing was counted"
    assert len({row["rollout/reliability_entropy"] for row in lines}) > 1
    for iteration in range(4):
        a, b = (read_trees(tree_path(tmp_path / f, iteration)) for f in ("whole", "killed"))
        assert a == b


def test_a_budget_of_tokens_ends_rl_and_survives_a_crash(tmp_path, monkeypatch):
    """In place of rl.iterations; the learning rate falls with what is left of it."""
    settings = ["rl.sampled_tokens=2100", "rl.iterations=1", "rl.decay_to=0", *QUICK]
    settings.append("checkpoint.every=2")
    play(tmp_path / "whole", *settings)
    killed_and_resumed(tmp_path / "killed", monkeypatch, settings, at=4)
    lines = rl_lines(tmp_path / "whole")
    assert rl_lines(tmp_path / "killed") == lines
    spent = [row["rollout/response_tokens"] for row in lines]
    assert len(spent) >= 4 and sum(spent[:-1]) < 2100 <= sum(spent)
    for iteration, tokens in enumerate(spent):
        trees = read_trees(tree_path(tmp_path / "whole", iteration))
        assert tokens == sum(n["response_tokens"] for tree in trees for n in tree["nodes"])
    # Done is done; a longer run is another run where the learning rate falls.
    play(tmp_path / "whole", *settings)
    assert rl_lines(tmp_path / "whole") == lines
    with pytest.raises(UserError, match="rl.sampled_tokens = 2100, not 3000"):
        play(tmp_path / "whole", *settings, "rl.sampled_tokens=3000")


def test_budget_rules_survive_a_crash(tmp_path, monkeypatch):
    settings = ["tree.reinvest=True", "tree.adapt=True", "tree.roots=2", "tree.leaves=6", *QUICK]
    settings += ["checkpoint.every=2", "rl.iterations=4", "rl.types=mixed"]
    play(tmp_path / "whole", *settings)
    lines = rl_lines(tmp_path / "whole")
    weights = [row["rollout/weight_doors-2x3"] for row in lines]
    assert weights[0] == 1 / 2 and len(set(weights)) == 4
    assert [row["rollout/budget_used"] for row in lines] == [1.0] * 4
    assert sum(row["rollout/reinvested"] for row in lines) > 4
    branches = [row["rollout/branch_doors-2x3"] for row in lines]
    assert branches[0] == 2 and len(set(branches)) > 1
    trees = [read_trees(tree_path(tmp_path / "whole", i)) for i in range(4)]
    assert [{tree["branch"] for tree in some} for some in trees] == [{b} for b in branches]

    killed_and_resumed(tmp_path / "killed", monkeypatch, settings, at=4)
    assert rl_lines(tmp_path / "killed") == lines
    assert [read_trees(tree_path(tmp_path / "killed", i)) for i in range(4)] == trees


SEPARATE = ["tree.leaves=4", "tree.roots=4", "tree.signal=never", *QUICK]


def test_eto_tells_better_from_worse_and_resumes(tmp_path, monkeypatch):
    settings = ["algo.name=eto", "rl.rename=0", *SEPARATE]
    calls, weigh = [], preference.path_coefficients
    with monkeypatch.context() as patch:
        patch.setattr(
            preference, "path_coefficients", lambda *args: (calls.append(args), weigh(*args))[1]
        )
        play(tmp_path / "whole", *settings)
    # The reference is the policy that explored: one with the policy in the first step of a round.
    same = [bool((logp == ref).all()) for logp, ref, _, _ in calls]
    assert same == [True, False] * 3 and [beta for *_, beta in calls] == [0.1] * 2 + [0.5] * 4
    killed_and_resumed(tmp_path / "killed", monkeypatch, settings, at=2)
    lines = rl_lines(tmp_path / "whole")
    assert rl_lines(tmp_path / "killed") == lines and len(lines) == 3
    assert all(row["train/pairs"] > 0 for row in lines)
    assert all(row["train/pair_accuracy"] > 0.5 and row["train/margin"] > 0 for row in lines)
    dialogues = (tmp_path / "whole" / "warmup.jsonl").read_text().splitlines()
    known = {json.loads(line)["task"]["variation"] for line in dialogues}
    trees = read_trees(tree_path(tmp_path / "whole", 0))
    assert {tree["task"]["variation"] for tree in trees} <= known


def test_rlvmr_runs_on_its_own_tags(tmp_path):
    play(tmp_path, "algo.name=rlvmr", "rl.iterations=1", *SEPARATE)
    dialogues = [json.loads(x) for x in (tmp_path / "warmup.jsonl").read_text().splitlines()]
    text = " ".join(response for d in dialogues for response, _ in d["turns"])
    assert {f"<{tag}>" in text for tag in METAREASONING[:3]} == {True} and "<think>" not in text
    trees = read_trees(tree_path(tmp_path, 0))
    assert len(trees) == 2 and all(t["signal"] == "never" for t in trees)
    # A bad format costs 0.1 even where all episodes end alike.
    nodes = [node for tree in trees for node in tree["nodes"][1:]]
    parsed = [parse_response(node["response"], METAREASONING) for node in nodes]
    bad = [n for n, p in zip(nodes, parsed, strict=True) if not p.well_formed]
    assert all(node["reward"] == 0 for node in nodes), "take another seed: this one succeeds"
    assert bad and all(node["advantage"] == pytest.approx(-0.1) for node in bad)
    # The same tags or none: another method cannot start from here.
    with pytest.raises(UserError, match="other tags"):
        play(tmp_path / "other", f"sft.from_run={tmp_path}")
    # Nor can a run that holds out what was trained on here.
    world = make_world(load_config(TOY))
    seen = Task(**dialogues[0]["task"])
    for split, task in (("L0", seen), ("L2", dataclasses.replace(seen, variation=10**6))):
        strict = world._replace(train={}, splits={split: [task]})
        with pytest.raises(UserError, match=f"{seen.type} variation .*holds out"):
            borrow.dialogues(tmp_path, tmp_path / "other", strict)
    borrow.dialogues(tmp_path, tmp_path / "other", world._replace(splits={"L1": [task]}))
