"""The real catalogue: an oracle earns the full reward, and search ranks as Lucene does.

WEBSHOP_DATA=<folder of the original files> tests those. WEBSHOP_PACKED=<folder> tests the 1,000
products of the original's small set as its search index keeps them: `documents_1k.json.xz`, a list
of {"id", "contents": the text that Lucene indexed, "product": the entry of the product file with
"pricing" as a list of numbers}, and `items_ins_v2_1000.json` as it is."""

import collections
import json
import lzma
import math
import os
import pathlib
import random
import re
import shutil

import pytest

pytest.importorskip("thefuzz", reason="WebShop's packages are not installed ('.[webshop]')")
pytest.importorskip("Stemmer", reason="WebShop's packages are not installed ('.[webshop]')")
pytest.importorskip("ijson", reason="WebShop's packages are not installed ('.[webshop]')")

import Stemmer

from spark_jax.envs.webshop.catalogue import read_catalogue
from spark_jax.envs.webshop.environment import WebShopEnvironment, open_shop
from spark_jax.envs.webshop.search import Index
from spark_jax.types import Task

PACKED = os.environ.get("WEBSHOP_PACKED", "")
DOCUMENTS, ATTRIBUTES = "documents_1k.json.xz", "items_ins_v2_1000.json"
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
        env.step(f"search[{wanted.title}]")
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


# ---- search: the rules of Lucene's BM25, written down a second time, over the indexed texts


STOP = set(
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with".split()
)
STEM = Stemmer.Stemmer("porter").stemWord
# The words of a text: letters and digits, joined by an apostrophe or dot between letters, by a
# dot, comma or apostrophe between digits, by a colon between letters.
WORDS = re.compile(
    r"\w+(?:['’.](?=[^\W\d_])(?<=[^\W\d_]['’.])\w+|[.,'’](?=\d)(?<=\d[.,'’])\w+"
    r"|:(?=[^\W\d_])(?<=[^\W\d_]:)\w+)*"
)


def words_of(text):
    words = [re.sub("['’]s$", "", word, flags=re.I).lower() for word in WORDS.findall(text)]
    return [STEM(word) for word in words if word and word not in STOP]


def one_byte(length):
    """What is left of a length in Lucene's one byte, by SmallFloat.intToByte4 and byte4ToInt."""
    rest = length - 24  # 24 bytes stand for themselves: 255 less the byte of the largest integer
    if rest < 8:
        return length
    shift = rest.bit_length() - 4
    code = (rest >> shift & 7) | (shift + 1) << 3
    return 24 + (((code & 7) | 8) << (code >> 3) - 1)


class Reference:
    """k1 = 0.9, b = 0.4; equal scores (to four places) in the order of the documents."""

    def __init__(self, texts):
        documents = [words_of(text) for text in texts]
        self.mean = sum(map(len, documents)) / len(documents)
        self.lengths = [one_byte(len(words)) for words in documents]
        self.found = collections.defaultdict(dict)  # word -> document -> times
        for i, words in enumerate(documents):
            for word, times in collections.Counter(words).items():
                self.found[word][i] = times

    def search(self, query, most=50):
        scores = collections.defaultdict(float)
        for word, times in collections.Counter(words_of(query)).items():
            found = self.found.get(word, {})
            rare = math.log(1 + (len(self.lengths) - len(found) + 0.5) / (len(found) + 0.5))
            for i, count in found.items():
                norm = 0.9 * (0.6 + 0.4 * self.lengths[i] / self.mean)
                scores[i] += times * rare * count / (count + norm)
        return sorted(scores, key=lambda i: (-round(scores[i], 4), i))[:most]


@needs_packed
def test_search_ranks_as_lucene_does(unpacked):
    packed, products = documents(), read_catalogue(unpacked)
    assert [product.asin for product in products] == [document["id"] for document in packed]
    index, reference = Index(products), Reference([document["contents"] for document in packed])
    rng = random.Random(0)
    chosen = rng.sample(products, 100)
    queries = [goal.instruction for goal in rng.sample(open_shop(unpacked).goals, 100)]
    queries += [f"{product.query} {product.category}" for product in chosen]
    queries += [" ".join(product.title.split()[:5]) for product in chosen]
    pairs = [(index.search(query, 50), reference.search(query)) for query in queries]
    assert sum(ours[:1] == theirs[:1] for ours, theirs in pairs) == 300
    # Sums of equal terms in another order may round to another fourth place.
    assert sum(ours == theirs for ours, theirs in pairs) >= 297
