"""What runs have cost, and curves of several seeds made one."""

import json
import pathlib

import numpy as np
import pytest

from spark_jax.run.config import load_config, start_or_resume
from spark_jax.run.cost_plot import average, plot_costs
from spark_jax.run.costs import (
    curve,
    evaluated,
    last_evaluation,
    rows_after_warmup,
    running_mean,
    same_panel,
    spent,
)
from spark_jax.run.evalfile import EpisodeResult, add_evaluation
from spark_jax.types import Task, UserError

TOY = str(pathlib.Path(__file__).parents[1] / "configs" / "toy.py")


def row(step, phase, **values):
    return {"step": step, "phase": phase} | {k.replace("__", "/"): v for k, v in values.items()}


def iteration(step, tokens, rate):
    return row(
        step, "rl", rollout__response_tokens=tokens, rollout__env_steps=7, rollout__replay_steps=3,
        time__rollout_s=2.0, time__update_s=0.5, rollout__path_success_rate=rate,
    )  # fmt: skip


def results(successes, first=0):
    return [EpisodeResult(Task("toy", "a", first + i), i < successes, 0.0, 1) for i in range(4)]


def make(folder, rows, *settings):
    start_or_resume(folder, load_config(TOY, settings))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_costs_are_those_after_the_warm_up(tmp_path):
    rows = [row(1, "sft", time__update_s=100.0), row(2, "eval"), iteration(3, 50, 0.5)]
    rows += [row(3, "eval"), iteration(4, 70, 0.25)]
    folder = make(tmp_path, rows)
    assert [r["step"] for r in rows_after_warmup(folder)] == [3, 4]
    costs = {"sampled tokens": 120, "environment steps": 20, "seconds of training": 5.0}
    assert spent(rows_after_warmup(folder)) == costs
    points = curve(folder, "rollout/path_success_rate")
    assert [v for _, v in points] == [0.5, 0.25]
    assert points[0][0]["sampled tokens"] == 50 and points[1][0] == costs
    assert rows_after_warmup(tmp_path / "nowhere") == []


def test_sft_in_the_place_of_rl_costs_its_seconds(tmp_path):
    rows = [row(1, "sft", time__update_s=9.0), row(2, "eval"), row(3, "sft", time__update_s=4.0)]
    folder = make(tmp_path, rows, "algo.name=sft", "sft.extra_seconds=3")
    add_evaluation(folder, "after warm-up", 2, 0.4, {"L0": results(1)})
    assert last_evaluation(folder) is None
    add_evaluation(folder, "after more SFT", 3, 0.4, {"L0": results(3)})
    assert last_evaluation(folder)["name"] == "after more SFT"
    points = evaluated(folder, "L0")
    assert [v for _, v in points] == [0.25, 0.75]
    assert [at["seconds of training"] for at, _ in points] == [0, 4.0]
    assert points[1][0]["sampled tokens"] == 0
    assert evaluated(folder, "L1") == []


def test_evaluations_stand_where_they_were_made(tmp_path):
    folder = make(tmp_path, [row(2, "eval"), iteration(3, 50, 0), iteration(4, 70, 0)])
    for name, step in (("after warm-up", 2), ("iteration 1", 3), ("after RL", 4)):
        add_evaluation(folder, name, step, 0.4, {"L0": results(step)})
    assert [at["sampled tokens"] for at, _ in evaluated(folder, "L0")] == [0, 50, 120]


def test_running_mean_by_hand():
    points = [({"x": float(i)}, v) for i, v in enumerate([1.0, 0.0, 0.5, 0.0])]
    got = running_mean(points, 3)
    assert [at for at, _ in got] == [at for at, _ in points]
    assert [v for _, v in got] == pytest.approx([1.0, 0.5, 0.5, 0.5 / 3])


def test_panels_that_differ_cannot_be_paired(tmp_path):
    a = add_evaluation(tmp_path / "a", "x", 1, 0.4, {"L0": results(1)})
    b = add_evaluation(tmp_path / "b", "x", 1, 0.4, {"L0": results(1, first=1)})
    same_panel([a, a], "L0")
    with pytest.raises(UserError, match="different tasks of L0"):
        same_panel([a, b], "L0")


def test_seeds_are_averaged_at_the_same_cost():
    def points(*pairs):
        return [({"cost": float(x)}, y) for x, y in pairs]

    x, mean, low, high = average([points((0, 0), (10, 1)), points((2, 1), (6, 0))], "cost")
    assert (x[0], x[-1]) == (2, 6)
    first, second = x / 10, 1 - (x - 2) / 4
    np.testing.assert_allclose(mean, (first + second) / 2)
    np.testing.assert_allclose(low, np.minimum(first, second))
    np.testing.assert_allclose(high, np.maximum(first, second))
    assert average([], "cost") is None
    assert average([points((0, 0.1), (0, 0.4))], "cost") is None, "nothing was spent"
    assert average([points((0, 0), (1, 1)), points((3, 0), (4, 1))], "cost") is None


def test_a_plot_names_its_lines_and_is_the_same_every_time(tmp_path):
    at = {"sampled tokens": 9.0, "environment steps": 9.0, "seconds of training": 9.0}
    start = dict.fromkeys(at, 0.0)
    lines = {"a & b": [[(start, 0.1), (at, 0.5)]] * 2, "empty": [[]]}
    for name in ("one", "two"):
        plot_costs({"success, %": lines, "other, %": {}}, tmp_path / "new" / f"{name}.svg")
    text = (tmp_path / "new" / "one.svg").read_text()
    assert "a &amp; b" in text and "success, %" in text and "empty" not in text
    assert text == (tmp_path / "new" / "two.svg").read_text()
