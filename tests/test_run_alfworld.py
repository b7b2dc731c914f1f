"""The ALFWorld config: every preset loads and sees the embedded games; where the engine is
installed, a small run goes through all phases."""

import importlib.util
import json
import pathlib

import pytest

from spark_jax.run.config import load_config
from spark_jax.run.loop import run
from spark_jax.run.worlds import make_world
from spark_jax.types import UserError

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
