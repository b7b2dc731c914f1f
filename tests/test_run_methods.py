"""Whole runs of methods other than the default, on the toy environment."""

import json
import pathlib

import pytest
from small_run import SETTINGS

from spark_jax.run import loop
from spark_jax.run.config import load_config
from spark_jax.run.metrics import read_metrics
from spark_jax.run.treefile import read_trees, tree_path

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
    assert len(calls) > at


def test_reliabilities_survive_a_crash(tmp_path, monkeypatch):
    """The crash loses an iteration that was done, and with it what it had counted."""
    settings = ["tree.signal=calibrated", "tree.signal_rise=0", "tree.roots=2"]
    settings += ["checkpoint.every=2", "rl.iterations=4", "eval.splits=L1", "eval.episodes=2"]
    settings += ["rl.temperature=1.5", "rl.tasks_per_iteration=4"]
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
