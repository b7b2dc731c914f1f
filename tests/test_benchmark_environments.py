"""The comparison with stock WebShop, against a stand-in for the original in another process."""

import argparse
import json
import pathlib
import sys

import pytest

pytest.importorskip("thefuzz", reason="WebShop's packages are not installed ('.[webshop]')")
pytest.importorskip("Stemmer", reason="WebShop's packages are not installed ('.[webshop]')")
pytest.importorskip("ijson", reason="WebShop's packages are not installed ('.[webshop]')")

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import environments  # noqa: E402
from spark_jax.envs.webshop.generate import generated_files  # noqa: E402

# The original's interface over our shop: other white space, a wrong page where told to.

STAND_IN = f"""
import sys
from types import SimpleNamespace
sys.path.insert(0, {str(ROOT)!r})
from spark_jax.envs.webshop.environment import WebShopEnvironment, open_shop
from spark_jax.types import Task

class WebAgentTextEnv:
    def __init__(self, mode, file, num_products, human_goals, show_attrs):
        print("loaded")
        assert show_attrs and (mode, file, num_products, human_goals) == (
            "text", "data/items_shuffle_1000.json", 1000, 0)
        self.env, self.server = WebShopEnvironment("data"), SimpleNamespace()

    def reset(self, session):
        goal = self.server.goals[session]
        assert self.server.product_prices[goal["asin"]]
        number = [g.instruction for g in open_shop("data").goals].index(goal["instruction_text"])
        self.observation = self.env.start(Task("webshop", goal["category"], number)).observation

    def step(self, action):
        result = self.env.step(action)
        text = result.observation.replace(" [SEP] ", "  [SEP]\\n [SEP] ")
        self.observation = text.replace("Buy Now", "Sold Out") if "BROKEN" in text else text
        return self.observation, result.score / 100, result.done, None
"""


@pytest.fixture
def checkout(tmp_path):
    data, code = tmp_path / "data", tmp_path / "web_agent_site" / "envs"
    data.mkdir()
    code.mkdir(parents=True)
    products, known = zip(*generated_files()[:60], strict=True)
    (data / "items_shuffle_1000.json").write_text(json.dumps(products))
    entries = {product["asin"]: entry for product, entry in zip(products, known, strict=True)}
    (data / "items_ins_v2_1000.json").write_text(json.dumps(entries))
    module = code / "web_agent_text_env.py"
    module.write_text(STAND_IN)
    return tmp_path


def measure(checkout, capsys):
    options = argparse.Namespace(
        paths=6, episodes=0, webshop_stock=checkout, webshop_python=sys.executable
    )
    return environments.webshop(options), capsys.readouterr().out


def test_both_play_the_same_and_pages_and_rewards_are_compared(checkout, capsys):
    rows, said = measure(checkout, capsys)
    assert [row.name for row in rows] == [
        "WebShop (embedded shop), ours",
        "WebShop (1,000 products), ours",
        "WebShop (1,000 products), stock",
    ]
    pages, _, of = said.split("WebShop (1,000 products): ")[1].partition(" of ")
    assert int(pages) == int(of.split()[0]) > 6 * 5 and "and 6 of 6 rewards" in of
    assert all(row.step_ms > 0 and not row.reason for row in rows)
    assert set(rows[2].fork_ms) == set(environments.DEPTHS)
    assert "| WebShop (1,000 products), stock | " in environments.table(rows)


def test_another_page_is_counted_and_shown(checkout, capsys):
    module = checkout / "web_agent_site" / "envs" / "web_agent_text_env.py"
    module.write_text(module.read_text().replace('"BROKEN" in text', '"Features" in text'))
    _, said = measure(checkout, capsys)
    pages, _, of = said.split("WebShop (1,000 products): ")[1].partition(" of ")
    assert 0 < int(pages) < int(of.split()[0])
    assert "original: Instruction:" in said and "Sold Out" in said


def test_an_original_that_does_not_run_says_why(checkout, capsys):
    (checkout / "web_agent_site" / "envs" / "web_agent_text_env.py").write_text("import no_java")
    with pytest.raises(SystemExit, match="No module named 'no_java'"):
        measure(checkout, capsys)


def test_without_the_original_a_row_says_so(capsys):
    options = argparse.Namespace(paths=2, episodes=0, webshop_stock=None, webshop_python="")
    rows = environments.webshop(options)
    assert "--webshop-stock is not given" in environments.table(rows)
