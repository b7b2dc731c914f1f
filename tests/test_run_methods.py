"""Whole runs of methods other than the default, on the toy environment."""

import json
import pathlib

import pytest
from small_run import SETTINGS

from spark_jax.envs.response import METAREASONING
from spark_jax.run import loop
from spark_jax.run.config import load_config
from spark_jax.run.metrics import read_metrics
from spark_jax.run.treefile import read_trees, tree_path
from spark_jax.types import UserError

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


def killed_and_resumed(folder, monkeypatch, settings, function="write_trees", at=3):
    """A run whose `function` of the loop ends it at its call number `at`, then the same again."""
    calls, real = [], getattr(loop, function)

    def once(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, function, once)
    with pytest.raises(Killed):
        play(folder, *settings)
    play(folder, *settings)
    monkeypatch.undo()
    assert len(calls) > at


def test_reliabilities_survive_a_crash(tmp_path, monkeypatch):
    """The crash loses an iteration that was done, and with it what it had counted."""
    settings = ["tree.signal=calibrated", "tree.signal_rise=0", "tree.roots=2"]
    settings += ["checkpoint.every=2", "rl.iterations=4", "eval.episodes=2"]
    settings += ["rl.tasks_per_iteration=4"]
    play(tmp_path / "whole", *settings)
    killed_and_resumed(tmp_path / "killed", monkeypatch, settings, at=4)
    lines = rl_lines(tmp_path / "whole")
    assert rl_lines(tmp_path / "killed") == lines and len(lines) == 4
    assert sum(row["rollout/forks"] for row in lines[:3]) > 0, "nothing was counted"
    assert len({row["rollout/reliability_entropy"] for row in lines}) > 1
    for iteration in range(4):
        a, b = (read_trees(tree_path(tmp_path / f, iteration)) for f in ("whole", "killed"))
        assert a == b
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["tree"]["roots"] == 2


def test_rlvmr_runs_on_its_own_tags(tmp_path):
    settings = ["algo.name=rlvmr", "tree.leaves=4", "rl.iterations=1", "env.max_steps=3"]
    play(tmp_path, "tree.roots=4", "tree.signal=never", *settings)
    dialogues = [json.loads(x) for x in (tmp_path / "warmup.jsonl").read_text().splitlines()]
    text = " ".join(response for d in dialogues for response, _ in d["turns"])
    assert {f"<{tag}>" in text for tag in METAREASONING[:3]} == {True} and "<think>" not in text
    trees = read_trees(tree_path(tmp_path, 0))
    assert [len(t["nodes"]) - 1 for t in trees] and all(t["signal"] == "never" for t in trees)
    # The same tags or none: another method cannot start from here.
    with pytest.raises(UserError, match="other tags"):
        play(tmp_path / "other", f"sft.from_run={tmp_path}")
