"""The sweep: all combinations, resumable commands, a table and a plot of what is there."""

import json
import pathlib
import subprocess
import sys

import pytest
from small_run import SETTINGS

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
    assert sweep.cells(grid)[1].overrides == ("tree.roots=2", "tree.signal=never")
    assert [cell.name for cell in sweep.cells({})] == ["base"]
    listed = [{"tree.signal": "never", "tree.roots": 8}, {"tree.signal": "explore"}]
    assert sweep.cells(listed) == [
        ("signal=never,roots=8", ("tree.signal=never", "tree.roots=8")),
        ("signal=explore", ("tree.signal=explore",)),
    ]
    alike = [{"rl.learning_rate": 1e-4}, {"sft.learning_rate": 1e-4, "tree.roots": 2}]
    assert [cell.name for cell in sweep.cells(alike)] == [
        "rl.learning_rate=0.0001", "sft.learning_rate=0.0001,roots=2",
    ]  # fmt: skip


@pytest.mark.parametrize("file", SWEEPS, ids=lambda p: p.stem)
def test_every_sweep_of_the_paper_is_valid(file):
    listed = subprocess.run(
        [sys.executable, "launch/sweep.py", str(file), "--runs=runs/x", "--seeds=0,1", "--print"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert len(listed) % 2 == 0 and len(listed) >= 4 and len(set(listed)) == len(listed)
    for line in listed:
        overrides = [w.removeprefix("--config.") for w in line.split() if w.startswith("--config.")]
        load_config(str(ROOT / "configs" / "scienceworld.py"), overrides)


def test_overrides_may_be_two_words(capsys):
    words = ["--runs=x", "--config.rl.iterations", "4", "--print", "--config.tree.leaves=16"]
    assert sweep.main(words) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("--config.seed=0 --config.rl.iterations=4 --config.tree.leaves=16")


def test_runs_are_processes_and_finished_ones_are_passed_over(tmp_path, capfd):
    """Two settings, of which one fails; then only that one is run again."""
    small = [f"--config.{s}" for s in SETTINGS if not s.startswith(("eval.splits", "rl.iter"))]
    words = ["--config=configs/toy.py", f"--runs={tmp_path}", "--grid=rl.iterations=0,1", *small]
    blocked = tmp_path / "iterations=1" / "seed0"
    blocked.parent.mkdir()
    blocked.write_text("a file where the work folder should be")
    assert sweep.main([*words, "--config.eval.splits=L1"]) == 1
    captured = capfd.readouterr()
    assert "1 of 2 runs failed" in captured.err and "1 of 1" in captured.out
    metrics = tmp_path / "iterations=0" / "seed0" / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    blocked.unlink()
    assert sweep.main([*words, "--config.eval.splits=L1"]) == 0
    out = capfd.readouterr().out
    assert "[1 of 2] iterations=0, seed 0: finished" in out
    assert metrics.stat().st_mtime_ns == before
    lines = (tmp_path / "sweep.md").read_text().splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["1 of 1", "1 of 1"]
    assert (tmp_path / "sweep.svg").stat().st_size > 1000
    # Evaluations may be asked for anew: that is not finished, and then it is.
    fewer = [*words, "--config.eval.splits=L1", "--config.eval.episodes=3"]
    for state in ("", ": finished"):
        assert sweep.main(fewer) == 0
        out = capfd.readouterr().out
        assert f"[1 of 2] iterations=0, seed 0{state}\n" in out
        assert f"[2 of 2] iterations=1, seed 0{state}\n" in out
    ends = [sweep.last_evaluation(tmp_path / f"iterations={n}" / "seed0") for n in (0, 1)]
    assert [end["splits"]["L1"]["episodes"] for end in ends] == [3, 3]
    # Other settings are another run, and main says that the folder is taken.
    assert sweep.main([*words, "--config.eval.splits=L1", "--config.tree.branch=3"]) == 1
    assert "was started with config.tree.branch" in capfd.readouterr().err


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
        (["--runs=x", "--seeds=0,0"], "--seeds is '0,0'"),
        (["--runs=x", "--seeds=²"], "--seeds is '²'"),
        (["--runs=x", "--grid=tree.leaves=8,8"], "leaves=8 twice"),
        (["--runs=x", "README.md"], "cannot be read (SyntaxError"),
        (["--runs=x", "--config.tree.leaves", "--print"], "config.tree.leaves has no value"),
        (["--runs=x", "configs/sweeps/leaves.py", "--config.tree.leaves=8"], "the sweep varies"),
        (["--runs=x", "--seeds=0,1", "--config.seed=3"], "the sweep varies seed"),
        (["--runs=x", "configs/sweeps/signal.py", "--grid=tree.leaves=4,8"], "GRID is a list"),
        (["--runs=x", "--grid=tree.leaves=8,2"], "tree.roots"),  # before anything runs
        ([], "--runs"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert exit_code(sweep.main, arguments) == 2
    assert message in capsys.readouterr().err
