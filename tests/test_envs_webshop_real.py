"""The real catalogue: an oracle earns the full reward, and search ranks as Lucene does.

WEBSHOP_DATA=<folder of the original files> tests those. WEBSHOP_PACKED=<folder> tests the 1,000
products of the original's small set as its search index keeps them: `documents_1k.json.xz`, a list
of {"id", "contents": the text that Lucene indexed, "product": the entry of the product file with
"pricing" as a list of numbers}, and `items_ins_v2_1000.json` as it is."""

import json
import lzma
import os
import pathlib
import random
import shutil

import pytest

pytest.importorskip("thefuzz", reason="WebShop's packages are not installed ('.[webshop]')")
pytest.importorskip("Stemmer", reason="WebShop's packages are not installed ('.[webshop]')")
pytest.importorskip("ijson", reason="WebShop's packages are not installed ('.[webshop]')")

from make_lucene_golden import FILE as LUCENE_FILE

from spark_jax.envs.webshop.catalogue import read_catalogue
from spark_jax.envs.webshop.environment import WebShopEnvironment, open_shop
from spark_jax.envs.webshop.search import Index, contents
from spark_jax.types import Task

PACKED = os.environ.get("WEBSHOP_PACKED", "")
DOCUMENTS, ATTRIBUTES = "documents_1k.json.xz", "items_ins_v2_1000.json"
LUCENE = json.loads(LUCENE_FILE.read_text(encoding="utf-8"))
needs_packed = pytest.mark.skipif(
    not PACKED, reason=f"WEBSHOP_PACKED does not point at a folder with {DOCUMENTS}"
)


def documents():
    with lzma.open(pathlib.Path(PACKED) / DOCUMENTS, "rt", encoding="utf-8") as file:
        return json.load(file)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The packed products as the original's own files."""
    folder = tmp_path_factory.mktemp("webshop")
    products = [document["product"] for document in documents()]
    for product in products:
        product["pricing"] = "".join(f"${price}" for price in product["pricing"])
    (folder / "items_shuffle_1000.json").write_text(json.dumps(products), encoding="utf-8")
    shutil.copy(pathlib.Path(PACKED) / ATTRIBUTES, folder / ATTRIBUTES)
    return str(folder)


def oracle_wins(data_dir, numbers):
    """How many of these goals are won by buying the product that they were made from."""
    shop, env, won = open_shop(data_dir), WebShopEnvironment(data_dir), 0
    for number in numbers:
        wanted = shop.goals[number]
        env.start(Task("webshop", wanted.category, number))
        env.step(f"search[{wanted.title.replace('[', ' ')}]")
        while wanted.asin.lower() not in env.clickables() and env.step("click[next >]").valid:
            pass
        if not env.step(f"click[{wanted.asin}]").valid:
            continue
        for value in wanted.options.values():
            env.step(f"click[{value}]")
        won += env.step("click[buy now]").success
    return won


@pytest.mark.skipif(not os.environ.get("WEBSHOP_DATA"), reason="WEBSHOP_DATA is not set")
def test_goals_of_the_original_files_can_be_won():
    assert oracle_wins(os.environ["WEBSHOP_DATA"], range(1000)) >= 990


@needs_packed
def test_goals_of_the_packed_products_can_be_won(unpacked):
    goals = len(open_shop(unpacked).goals)
    assert goals == 6910
    numbers = random.Random(0).sample(range(goals), 400)
    assert oracle_wins(unpacked, numbers) >= 0.99 * len(numbers)


@needs_packed
def test_search_ranks_as_lucene_does(unpacked):
    products = read_catalogue(unpacked)
    assert [product.asin for product in products] == [document["id"] for document in documents()]
    for product, document in zip(products, documents(), strict=True):
        assert contents(product).split() == document["contents"].split()
    index, pairs = Index(products), []
    for query, best in LUCENE["packed"]:
        pairs.append(([products[i].asin for i in index.search(query, 50)], best))
    assert len(pairs) == 60 and all(ours[:10] == best[:10] for ours, best in pairs)
    # Sums of almost equal terms may be rounded the other way.
    assert sum(ours == best for ours, best in pairs) >= 58
