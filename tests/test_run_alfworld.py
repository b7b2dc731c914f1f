"""The ALFWorld config: every preset loads and sees the embedded games; where the engine is
installed, a small run goes through all phases."""

import importlib.util
import json
import pathlib

import pytest

from spark_jax.envs.alfworld import expert
from spark_jax.envs.alfworld.environment import AlfWorldEnvironment
from spark_jax.envs.trajectory import Trajectory
from spark_jax.run.config import load_config
from spark_jax.run.loop import run
from spark_jax.run.worlds import make_world
from spark_jax.types import Start, UserError

CONFIG = str(pathlib.Path(__file__).parents[1] / "configs" / "alfworld.py")
MISSING = [p for p in ("textworld", "alfworld", "fast_downward") if not importlib.util.find_spec(p)]


@pytest.mark.parametrize("preset", ["tiny", "nano", "smollm2", "qwen1.5b", "qwen7b"])
def test_every_preset_is_alfworld(preset):
    config = load_config(f"{CONFIG}:{preset}")
    assert config.env.name == "alfworld" and config.model.preset == preset
    small = preset in ("tiny", "nano")
    assert config.env.max_steps == (20 if small else 30)
    assert config.env.data_dir == "" and not config.env.show_admissible
    if small:  # a path of longest responses can be trained on
        assert config.train.row_targets >= config.env.max_steps * config.rollout.response_tokens


def test_an_unknown_preset_is_named():
    with pytest.raises(UserError, match="no preset 'huge'"):
        load_config(f"{CONFIG}:huge")


def test_the_world_has_the_splits_and_says_where_games_come_from(tmp_path):
    world = make_world(load_config(CONFIG))
    assert world.source == "ALFWorld: embedded games"
    assert {split: len(tasks) for split, tasks in world.splits.items()} == {"L0": 144, "L1": 144}
    held_out = ["env.protocol=held_out", "eval.splits=L1,L2"]
    world = make_world(load_config(CONFIG, held_out))
    assert len(world.train) == 4 and len(world.splits["L2"]) == 48
    with pytest.raises(UserError, match="alfworld-download"):
        make_world(load_config(CONFIG, [f"env.data_dir={tmp_path}"]))


def test_an_engine_that_dies_under_the_expert_is_replaced(monkeypatch):
    world = make_world(load_config(CONFIG))
    tasks = next(iter(world.train.values()))[:2]
    deaths, closed = [3, 0], []

    def play(env, task, max_steps):
        number = tasks.index(task)
        if deaths[number]:
            deaths[number] -= 1
            raise RuntimeError("its process 7 ended (code -9)")
        return Trajectory(task, Start("", ""), (), 100.0)

    monkeypatch.setattr(expert, "play", play)
    monkeypatch.setattr(AlfWorldEnvironment, "close", lambda env: closed.append(env))
    paths = world.experts(tasks, 1, None, lambda *counts: None)
    assert [path.task for path in paths] == tasks
    assert len(closed) == 3 + 1  # after each death, and at the end
    deaths[:] = [4, 0]
    with pytest.raises(UserError, match=r"died 4 times .*code -9.*: check the memory"):
        world.experts(tasks, 1, None, lambda *counts: None)


@pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} not installed ('.[alfworld]')")
def test_a_small_run_keeps_house(tmp_path, capsys):
    settings = """sft.trajectories=8 sft.epochs=1 sft.panel=0 rl.iterations=1 rl.minibatches=2
        rl.tasks_per_iteration=2 tree.leaves=2 tree.roots=2 env.max_steps=8 eval.episodes=2
        eval.splits=L1 rollout.path_tokens=768 rollout.rows=4 train.row_tokens=768
        train.row_targets=512 env.workers=2"""
    evaluations = run(load_config(f"{CONFIG}:nano", settings.split()), tmp_path)
    assert [e["splits"]["L1"]["episodes"] for e in evaluations] == [2, 2]
    assert "ALFWorld: embedded games" in capsys.readouterr().err
    first = json.loads((tmp_path / "warmup.jsonl").read_text().splitlines()[0])
    assert first["turns"][0][0].endswith("</action>") and "go to " in first["turns"][0][0]
    tree = json.loads((tmp_path / "trees" / "0.jsonl").read_text().splitlines()[0])
    assert tree["task"]["env"] == "alfworld"
