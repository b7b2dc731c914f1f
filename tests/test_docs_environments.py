"""The example of docs/environments.md is a whole environment: it trains."""

import importlib
import json
import pathlib
import re
import sys

import pytest

from spark_jax.run.config import load_config
from spark_jax.run.loop import run
from spark_jax.run.worlds import make_world
from spark_jax.types import UserError

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")


@pytest.fixture
def guess(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "guess.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield importlib.import_module("guess")
    del sys.modules["guess"]


def test_the_example_is_short(guess):
    lines = pathlib.Path(guess.__file__).read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 60


def test_the_example_trains(guess, tmp_path):
    config = load_config(
        str(ROOT / "configs" / "toy.py"),
        [
            "env.name=guess:make_world", "eval.splits=L0,L1", "sft.epochs=1", "sft.panel=0",
            "rl.iterations=1", "rl.tasks_per_iteration=2", "eval.episodes=4",
        ],
    )  # fmt: skip
    evaluations = run(config, tmp_path / "run")
    assert [e["name"] for e in evaluations] == ["after warm-up", "after RL"]
    assert set(evaluations[0]["splits"]) == {"L0", "L1"}
    lines = (tmp_path / "run" / "warmup.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["turns"][0][0].startswith("<explore>Halve it.</explore>")


def test_the_expert_of_the_example_wins(guess):
    assert all(
        guess.expert(task).steps[-1].observation == "Right." for task in guess.tasks("train")
    )


@pytest.mark.parametrize("name", ["no.such:thing", "guess:nothing", "json:"])
def test_a_name_that_is_no_world_ends_in_one_sentence(guess, name):
    config = load_config(str(ROOT / "configs" / "toy.py"), [f"env.name={name}"])
    with pytest.raises(UserError, match="MODULE:FUNCTION"):
        make_world(config)
