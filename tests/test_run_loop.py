"""Whole runs on the toy environment: they end, resume after kill -9, and repeat themselves."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_run import OVERRIDES

from spark_jax.envs.pool import default_workers
from spark_jax.run.evalfile import read_evaluations
from spark_jax.run.metrics import read_metrics
from spark_jax.run.treefile import read_trees, tree_iterations, tree_path

ROOT = Path(__file__).parents[1]
SMALL = ["--config=configs/toy.py", *OVERRIDES]


def command(workdir, *more):
    return [sys.executable, "-m", "spark_jax.main", f"--workdir={workdir}", *SMALL, *more]


def play(workdir, *more, environment=()):
    done = subprocess.run(
        command(workdir, *more), cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, **dict(environment)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def lines(workdir):
    """metrics.jsonl without what may differ."""
    return [
        {k: v for k, v in row.items() if not k.startswith("time/")} for row in read_metrics(workdir)
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, play(folder)


def test_a_run_leaves_what_the_contract_says(unbroken):
    folder, done = unbroken
    rows = read_metrics(folder)
    assert [r["phase"] for r in rows] == ["sft"] * 3 + ["eval"] + ["rl"] * 3 + ["eval"]
    rl = [r for r in rows if r["phase"] == "rl"]
    names = """rollout/success_rate rollout/leaves rollout/response_tokens rollout/prefill_tokens
        rollout/linear_tokens rollout/explore_rate rollout/repeat_ratio rollout/invalid_ratio
        rollout/env_steps rollout/replay_steps train/loss train/policy_loss train/kl
        train/clip_fraction train/entropy train/grad_norm train/packed_tokens train/linear_tokens
        time/rollout_s time/env_s time/update_s"""
    assert all(set(names.split()) <= set(row) for row in rl)
    assert "eval/L1/success_rate" in rows[3] and "eval/L2/success_rate" in rows[-1]
    assert [e["name"] for e in read_evaluations(folder)] == ["after warm-up", "after RL"]
    assert tree_iterations(folder) == [0, 1, 2]
    trees = read_trees(tree_path(folder, 1))
    assert len(trees) == 2 and trees[0]["task"]["split"] == "train"
    assert any(len({n["parent"] for n in t["nodes"]}) < len(t["nodes"]) - 1 for t in trees)
    assert json.loads((folder / "config.json").read_text())["tree"]["leaves"] == 8
    assert "after RL" in done.stdout + done.stderr


def test_nothing_is_compiled_after_the_first_iteration(unbroken):
    rl = [r for r in read_metrics(unbroken[0]) if r["phase"] == "rl"]
    assert rl[0]["time/compilations"] > 0
    assert [r["time/compilations"] for r in rl[1:]] == [0, 0]


def test_sampler_and_trainer_agree(unbroken):
    rl = [r for r in read_metrics(unbroken[0]) if r["phase"] == "rl"]
    assert all(r["train/logp_gap"] < 1e-5 for r in rl)


def test_a_run_on_a_mesh_is_the_run_on_one_device(unbroken, tmp_path):
    """Two samplers, each on two devices; the learner on all four."""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    devices = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    mesh = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.rl.iterations=2"]
    play(tmp_path, *mesh, environment=devices)
    rl = [row for row in read_metrics(tmp_path) if row["phase"] == "rl"]
    assert [row["time/compilations"] for row in rl[1:]] == [0]
    ours, theirs = (
        [row for row in lines(folder) if row["phase"] != "eval"][:4]
        for folder in (tmp_path, unbroken[0])
    )
    assert [row["phase"] for row in ours] == ["sft"] * 3 + ["rl"]
    for a, b in zip(ours, theirs, strict=True):
        for key in ("train/loss", "train/grad_norm", "train/entropy"):
            assert a[key] == pytest.approx(b[key], rel=1e-4), key
    assert ours[-1]["rollout/leaves"] == theirs[-1]["rollout/leaves"]


def test_a_second_call_changes_nothing(unbroken):
    folder, _ = unbroken
    before = (folder / "metrics.jsonl").read_bytes(), (folder / "eval.json").read_bytes()
    play(folder)
    assert before == ((folder / "metrics.jsonl").read_bytes(), (folder / "eval.json").read_bytes())


def test_a_resumed_run_has_as_many_environments_as_before(unbroken):
    """And not the default for this machine, which is another number than the 4 of the toy."""
    folder, _ = unbroken
    assert default_workers() != 4
    done = play(folder, "--config.env.workers=0")
    assert re.search(r"^4 environments$", done.stderr, re.M), done.stderr


def test_a_run_killed_at_random_moments_gives_the_same_metrics(unbroken, tmp_path):
    folder, _ = unbroken
    rng = random.Random(7)
    kills = 0
    for attempt in range(40):
        with open(tmp_path / "log", "w") as log:
            process = subprocess.Popen(
                command(tmp_path), cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )
        # From the start of the process, so the moments fall into every phase as the run proceeds;
        # later attempts get longer, so the run ends.
        deadline = time.time() + rng.uniform(3, 8 + 4 * attempt)
        while process.poll() is None and time.time() < deadline:
            time.sleep(0.02)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
            break
    assert kills >= 2, "the run was too short to be killed"
    assert lines(tmp_path) == lines(folder)
    for iteration in range(3):
        a, b = (read_trees(tree_path(f, iteration)) for f in (folder, tmp_path))
        assert a == b
    assert read_evaluations(tmp_path) == read_evaluations(folder)


def test_a_run_that_ends_with_the_warm_up_keeps_its_evaluation(unbroken, tmp_path):
    """Nor does a start that failed stand in its way."""
    wrong = ["--config.model.preset=smollm2", "--config.model.path=/nowhere"]
    done = subprocess.run(
        command(tmp_path, *wrong), cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 2 and "/nowhere" in done.stderr
    only = "--config.rl.iterations=0"
    play(tmp_path, only)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert lines(tmp_path) == lines(unbroken[0])[:4]
    done = play(tmp_path, only)
    assert "episode" not in done.stderr and (tmp_path / "metrics.jsonl").read_bytes() == before


def test_another_config_is_refused(unbroken):
    done = subprocess.run(
        command(unbroken[0], "--config.tree.branch=3"), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0 and "config.tree.branch" in done.stderr


def test_the_control_starts_from_the_same_warm_up(unbroken, tmp_path):
    folder, _ = unbroken
    play(
        tmp_path,
        "--config.algo.name=sft",
        f"--config.sft.from_run={folder}",
        "--config.sft.extra_seconds=3",
    )
    ours, theirs = read_evaluations(tmp_path), read_evaluations(folder)
    assert ours[0]["splits"] == theirs[0]["splits"]
    assert [e["name"] for e in ours] == ["after warm-up", "after more SFT"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--config.tree.leafs=4"], "config.tree.leaves"),
        (["--config.tree.roots=9"], "more roots than leaves"),
        (["--config.env.name=toyland"], "toy"),
        (["--config.env.tasks=dors-2x3"], "doors-KxC"),
        (["--config.model.preset=qwen7b", "--config.model.path=/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, tmp_path):
    done = subprocess.run(
        command(tmp_path / "w", *arguments), cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and words in last
    assert "Traceback" not in done.stderr
