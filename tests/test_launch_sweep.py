"""The sweep: all combinations, resumable commands, a table and a plot of what is there."""

import json
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from launch import sweep
from spark_jax.run.command_line import exit_code
from spark_jax.run.config import load_config, start_or_resume
from spark_jax.run.evalfile import EpisodeResult, add_evaluation
from spark_jax.types import Task

ROOT = pathlib.Path(__file__).parents[1]
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.py"))


def test_cells_are_all_combinations():
    grid = {"tree.roots": [2, 4], "tree.signal": ["explore", "never"]}
    names = [cell.name for cell in sweep.cells(grid)]
    assert names == [
        "roots=2,signal=explore", "roots=2,signal=never",
        "roots=4,signal=explore", "roots=4,signal=never",
    ]  # fmt: skip
    assert sweep.cells(grid)[1].overrides == ("--config.tree.roots=2", "--config.tree.signal=never")
    assert [cell.name for cell in sweep.cells({})] == ["base"]


@pytest.mark.parametrize("file", SWEEPS, ids=lambda p: p.stem)
def test_every_sweep_of_the_paper_is_valid(file):
    listed = subprocess.run(
        [sys.executable, "launch/sweep.py", str(file), "--runs=runs/x", "--seeds=0,1", "--print"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert len(listed) % 2 == 0 and len(listed) >= 8 and len(set(listed)) == len(listed)
    for line in listed:
        overrides = [w.removeprefix("--config.") for w in line.split() if w.startswith("--config.")]
        load_config(str(ROOT / "configs" / "scienceworld.py"), overrides)


def test_overrides_may_be_two_words(capsys):
    words = ["--runs=x", "--config.rl.iterations", "4", "--print", "--config.seed=3"]
    assert sweep.main(words) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("--config.rl.iterations=4 --config.seed=3")


def finished(folder, successes, tokens):
    results = [EpisodeResult(Task("toy", "a", i), i < successes, 0.0, 1) for i in range(10)]
    folder.mkdir(parents=True)
    start_or_resume(folder, load_config(str(ROOT / "configs" / "toy.py")))
    add_evaluation(folder, "after warm-up", 1, 0.4, {"L1": results[:5]})
    add_evaluation(folder, "after RL", 9, 0.4, {"L1": results})
    rows = [
        {"step": i, "phase": "rl", "rollout/response_tokens": tokens, "rollout/env_steps": 3,
         "rollout/replay_steps": 1, "time/rollout_s": 2.0, "time/update_s": 1.0,
         "rollout/success_rate": 0.1 * i, "rollout/path_success_rate": 0.2 * i}
        for i in range(4)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_table_has_the_last_evaluation_and_the_costs(tmp_path):
    finished(tmp_path / "a" / "seed0", 2, 100)
    finished(tmp_path / "a" / "seed1", 4, 300)
    folders = {
        "a": [tmp_path / "a" / "seed0", tmp_path / "a" / "seed1"],
        "b": [tmp_path / "b" / "seed0", tmp_path / "b" / "seed1"],
    }
    # A run in the middle of RL has an evaluation, but not its last one.
    finished(tmp_path / "b" / "seed1", 9, 100)
    entries = json.loads((tmp_path / "b" / "seed1" / "eval.json").read_text())
    entries["evaluations"].pop()
    (tmp_path / "b" / "seed1" / "eval.json").write_text(json.dumps(entries))
    lines = sweep.table(folders).splitlines()
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    a, b = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:])
    assert head == [
        "setting",
        "seeds",
        "L1",
        "sampled tokens",
        "environment steps",
        "seconds of training",
    ]
    assert a[:2] == ["a", "2 of 2"] and a[2].startswith("30.0 [") and a[3:] == ["800", "16", "12"]
    assert b[:2] == ["b", "0 of 2"]
    points = sweep.curve(tmp_path / "a" / "seed1")
    assert points[-1] == (
        {"sampled tokens": 1200, "environment steps": 16, "seconds of training": 12.0},
        pytest.approx(0.3),
    )
    sweep.plot(folders, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--runs=x", "--tree.leaves=3"], "--tree.leaves=3"),
        (["--runs=x", "no/such.py"], "no sweep file no/such.py"),
        (["--runs=x", "configs/toy.py"], "has no GRID"),
        (["--runs=x", "--grid=tree.leaves"], "KEY=VALUE"),
        (["--runs=x", "--seeds=a"], "--seeds is 'a'"),
        (["--runs=x", "--config.tree.leaves", "--print"], "config.tree.leaves has no value"),
        ([], "--runs"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert exit_code(sweep.main, arguments) == 2
    assert message in capsys.readouterr().err
