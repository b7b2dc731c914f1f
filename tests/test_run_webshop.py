"""The WebShop config: every preset loads, and a small run goes through all phases."""

import json
import pathlib

import pytest

pytest.importorskip("thefuzz", reason="WebShop's packages are not installed ('.[webshop]')")
pytest.importorskip("Stemmer", reason="WebShop's packages are not installed ('.[webshop]')")
pytest.importorskip("ijson", reason="WebShop's packages are not installed ('.[webshop]')")

from spark_jax.envs.webshop.generate import generated_files
from spark_jax.run.config import load_config
from spark_jax.run.loop import run
from spark_jax.run.worlds import make_world
from spark_jax.types import UserError

CONFIG = str(pathlib.Path(__file__).parents[1] / "configs" / "webshop.py")


@pytest.mark.parametrize("preset", ["tiny", "nano", "smollm2", "qwen1.5b", "qwen7b"])
def test_every_preset_is_webshop(preset):
    config = load_config(f"{CONFIG}:{preset}")
    assert config.env.name == "webshop" and config.model.preset == preset
    assert config.env.max_steps == 15
    if preset in ("tiny", "nano"):  # a path of longest responses can be trained on
        assert config.train.row_targets >= config.env.max_steps * config.rollout.response_tokens


def test_the_world_says_which_shop_it_is(tmp_path):
    embedded = "300 products, 1,251 goals (synthetic)"
    assert make_world(load_config(CONFIG)).source == f"WebShop: embedded shop, {embedded}"
    products, known = zip(*generated_files()[:100], strict=True)
    (tmp_path / "items_shuffle_1000.json").write_text(json.dumps(products))
    entries = {product["asin"]: entry for product, entry in zip(products, known, strict=True)}
    (tmp_path / "items_ins_v2_1000.json").write_text(json.dumps(entries))
    written = {"instruction": "A cream.", "instruction_attributes": ["soft"]}
    human = {product["asin"]: [written] for product in products}
    (tmp_path / "items_human_ins.json").write_text(json.dumps(human))
    settings = [f"env.data_dir={tmp_path}", "env.tasks=human"]
    told = f"WebShop: {tmp_path}, 100 products, 100 goals (written by people)"
    assert make_world(load_config(CONFIG, settings)).source == told


def test_a_small_run_shops(tmp_path, capsys):
    settings = """sft.trajectories=8 sft.epochs=1 sft.panel=0 rl.iterations=1 rl.minibatches=2
        rl.tasks_per_iteration=2 tree.leaves=2 tree.roots=2 env.max_steps=8 eval.episodes=2
        eval.splits=L1 rollout.path_tokens=768 rollout.rows=4 train.row_tokens=768
        train.row_targets=640"""
    evaluations = run(load_config(f"{CONFIG}:nano", settings.split()), tmp_path)
    assert [e["splits"]["L1"]["episodes"] for e in evaluations] == [2, 2]
    assert "WebShop: embedded shop, 300 products" in capsys.readouterr().err
    first = json.loads((tmp_path / "warmup.jsonl").read_text().splitlines()[0])
    assert first["turns"][0][0].endswith("</action>") and "search[" in first["turns"][0][0]
    tree = json.loads((tmp_path / "trees" / "0.jsonl").read_text().splitlines()[0])
    assert tree["task"]["env"] == "webshop"


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="items_shuffle_1000.json"):
        make_world(load_config(CONFIG, [f"env.data_dir={tmp_path}"]))
    with pytest.raises(UserError, match="synthetic goals|human goals"):
        make_world(load_config(CONFIG, ["env.tasks=human"]))
    with pytest.raises(UserError, match="no kind of goals"):
        make_world(load_config(CONFIG, ["env.tasks=find-plant"]))
