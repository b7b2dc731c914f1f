"""WebShop: pages, search, goals and every part of the reward, by hand; the embedded shop; the
original's file formats (the real catalogue: test_envs_webshop_real.py)."""

import collections
import dataclasses
import json
import pathlib
import re

import pytest

pytest.importorskip("thefuzz", reason="WebShop's packages are not installed ('.[webshop]')")
pytest.importorskip("Stemmer", reason="WebShop's packages are not installed ('.[webshop]')")
pytest.importorskip("ijson", reason="WebShop's packages are not installed ('.[webshop]')")

from make_lucene_golden import FILE as LUCENE_FILE

from spark_jax.envs.response import parse_response
from spark_jax.envs.trajectory import rendered_turns
from spark_jax.envs.webshop import tasks
from spark_jax.envs.webshop.catalogue import NO_ATTRIBUTES, product_of, read_catalogue
from spark_jax.envs.webshop.environment import REFUSED, WebShopEnvironment, open_shop
from spark_jax.envs.webshop.generate import generated_catalogue, generated_files
from spark_jax.envs.webshop.goals import NO_LIMIT, Goal, all_goals, price_limit
from spark_jax.envs.webshop.nouns import title_nouns
from spark_jax.envs.webshop.pages import Page, clickables, page_parts, page_text
from spark_jax.envs.webshop.reward import colour, matched_options, reward, type_reward
from spark_jax.envs.webshop.search import Index, rounded_length
from spark_jax.envs.webshop.shopper import misjudged, read_wish, shop
from spark_jax.envs.webshop.views import tree_pages
from spark_jax.types import Task, UserError

LUCENE = json.loads(LUCENE_FILE.read_text(encoding="utf-8"))


def raw(asin, name, levels="Home › Kitchen › Mugs", query="mug", **more):
    return {
        "asin": asin, "name": name, "full_description": "", "small_description": [],
        "category": "garden", "query": query, "product_category": levels, "pricing": "$12.50",
        "customization_options": "",
    } | more  # fmt: skip


COLORS = {"Color": [{"value": " Navy / Blue "}, {"value": "red"}], "Size": None}
MUG = product_of(
    raw("B000000001", "Acme Steel Mug", customization_options=COLORS, pricing="$12.50$20.00",
        full_description="Keeps tea warm.", small_description=["Dishwasher safe."]),
    {"attributes": ["stainless steel", "double wall"]},
)  # fmt: skip
LAMP = product_of(
    raw("B000000002", "Bright Lamp", "Home › Lighting › Lamps", "lamp", pricing=""), {}
)
PRODUCTS = (MUG, LAMP)


def goal(**changes):
    fields = dict(
        asin=MUG.asin, instruction="Find me a mug", category="garden", query="mug",
        title="Acme Steel Mug", levels=MUG.levels, attributes=("stainless steel",),
        options={"color": "navy | blue"}, price_limit=30.0,
    )  # fmt: skip
    return Goal(**fields | changes)


def test_a_product_is_read_by_the_originals_rules():
    assert MUG.options == {"color": ("navy | blue", "red")}
    assert MUG.prices == (12.5, 20.0) and MUG.price_tag == "$12.5 to $20.0"
    assert 12.5 <= MUG.price <= 20.0 and MUG.price == MUG.price
    assert LAMP.prices == (100.0,) and LAMP.attributes == NO_ATTRIBUTES


# --- the reward: each part on and off ----------------------------------------------------------


# What is asked for: a lamp with two attributes and two options below 40 dollars; the reward is the
# type's share times what fits of these five. The sums are written out, nothing is computed here.
BOTH = {"color": "matte black", "size": "14 inch"}
ASKED = goal(
    title="Halden Brass Desk Lamp, Dimmable", query="desk lamp", levels="Home › Lighting › Desks",
    attributes=("wireless charging", "touch control"), options=BOTH, price_limit=40.0,
)  # fmt: skip
ELSEWHERE = {"query": "reading light", "levels": "Office › Lighting"}  # one level shared
OTHER_LAMP = {"name": "Orrin Lamp"}  # one noun of five in common
TEN = "Halden Brass Desk Lamp Dimmable Shade Bulb Cord Switch Stand"
ELEVEN = TEN + " Clamp"


def lamp(attributes=ASKED.attributes, **changes):
    fields = {
        "name": ASKED.title,
        "levels": ASKED.levels,
        "query": "desk lamp",
        "pricing": "$29.99",
    }
    return product_of(raw("B00000000A", **fields | changes), {"attributes": list(attributes)})


@pytest.mark.parametrize(
    "asked,bought,chosen,parts,total",
    [
        # type, attributes, options, price; total
        ({}, {}, BOTH, (1, 2, 2, True), 1.0),  # 1 (2 + 2 + 1) / 5
        # the price below, at and above the limit
        ({}, {"pricing": "$39.99"}, BOTH, (1, 2, 2, True), 1.0),  # 1 (2 + 2 + 1) / 5
        ({}, {"pricing": "$40.00"}, BOTH, (1, 2, 2, True), 1.0),  # 1 (2 + 2 + 1) / 5
        ({}, {"pricing": "$40.01"}, BOTH, (1, 2, 2, False), 0.8),  # 1 (2 + 2 + 0) / 5
        # options: one, none, a wrong one, whatever name they are chosen by
        ({}, {}, {"size": "14 inch"}, (1, 2, 1, True), 0.8),  # 1 (2 + 1 + 1) / 5
        ({}, {}, {}, (1, 2, 0, True), 0.6),  # 1 (2 + 0 + 1) / 5
        ({}, {}, {**BOTH, "color": "white"}, (1, 2, 1, True), 0.8),  # 1 (2 + 1 + 1) / 5
        ({}, {}, {**BOTH, "size": "9 inch"}, (1, 2, 1, True), 0.8),  # 1 (2 + 1 + 1) / 5
        ({}, {}, {"x": "14 inch", "y": "matte black"}, (1, 2, 2, True), 1.0),  # (2 + 2 + 1) / 5
        ({}, {}, {**BOTH, "z": "white"}, (1, 2, 2, True), 1.0),  # 1 (2 + 2 + 1) / 5
        # near is enough: the same plain colour, the same words and more
        ({}, {}, {**BOTH, "color": "jet black"}, (1, 2, 2, True), 1.0),  # (2 + 2 + 1) / 5
        ({"options": {"0": "snow white"}}, {}, {"0": "offwhite"}, (1, 2, 1, True), 1.0),  # 4 / 4
        ({"options": {"0": "offwhite"}}, {}, {"0": "snow white"}, (1, 2, 1, True), 1.0),  # 4 / 4
        ({}, {}, {**BOTH, "size": "tall, 14 inch"}, (1, 2, 2, True), 1.0),  # (2 + 2 + 1) / 5
        # a ratio of 86, and not one of 85
        ({}, {}, {**BOTH, "size": "24 inch"}, (1, 2, 2, True), 1.0),  # (2 + 2 + 1) / 5
        ({"options": {"0": "charging case"}}, {}, {"0": "fast charging"},
         (1, 2, 0, True), 0.75),  # 1 (2 + 0 + 1) / 4
        # attributes: one, none
        ({}, {"attributes": ["touch control"]}, BOTH, (1, 1, 2, True), 0.8),  # (1 + 2 + 1) / 5
        ({}, {"attributes": ["cordless"]}, BOTH, (1, 0, 2, True), 0.6),  # (0 + 2 + 1) / 5
        # the same words, a ratio of 86, and not one of 85
        ({}, {"attributes": ["touch control, charging wireless"]}, BOTH,
         (1, 2, 2, True), 1.0),  # 1 (2 + 2 + 1) / 5
        ({"attributes": ("machine washable",)}, {"attributes": ["machine wash"]}, BOTH,
         (1, 1, 2, True), 1.0),  # 1 (1 + 2 + 1) / 4
        ({}, {"attributes": ["wireless charger"]}, BOTH, (1, 0, 2, True), 0.6),  # (0 + 2 + 1) / 5
        # attributes that title, bullet points or description mention
        ({"attributes": ("dimmable", "solid oak")}, {}, BOTH, (1, 1, 2, True), 0.8),  # 4 / 5
        ({}, {"attributes": [], "small_description": ["Folds.", "Touch Control."]}, BOTH,
         (1, 1, 2, True), 0.8),  # 1 (1 + 2 + 1) / 5
        ({}, {"attributes": [], "full_description": "With wireless charging."}, BOTH,
         (1, 1, 2, True), 0.8),  # 1 (1 + 2 + 1) / 5
        # fewer or more things asked for
        ({"attributes": ("touch control",), "options": {}, "price_limit": 20.0}, {}, {},
         (1, 1, 0, False), 0.5),  # 1 (1 + 0 + 0) / 2
        ({"options": {}}, {}, BOTH, (1, 2, 0, True), 1.0),  # 1 (2 + 0 + 1) / 3
        ({"attributes": ("touch control", "usb port", "solid oak")}, {}, {"size": "14 inch"},
         (1, 1, 1, True), 0.5),  # 1 (1 + 1 + 1) / 6
        # another type, of one noun in five: the query, two levels, or nothing in common
        ({}, {**OTHER_LAMP, "levels": "x"}, BOTH, (1, 2, 2, True), 1.0),  # (2 + 2 + 1) / 5
        ({}, {**OTHER_LAMP, "query": "x", "levels": "Home › Lighting › Tables"}, BOTH,
         (1, 2, 2, True), 1.0),  # 1 (2 + 2 + 1) / 5
        ({}, {**OTHER_LAMP, **ELSEWHERE}, BOTH, (0.5, 2, 2, True), 0.5),  # 0.5 · 5 / 5
        ({}, {**OTHER_LAMP, **ELSEWHERE, "pricing": "$41"}, {"size": "14 inch"},
         (0.5, 2, 1, False), 0.3),  # 0.5 (2 + 1 + 0) / 5
        # two nouns of five are enough by themselves
        ({}, {"name": "Orrin Brass Lamp", **ELSEWHERE}, {}, (1, 2, 0, True), 0.6),  # 3 / 5
        # a goal without nouns counts as one of five
        ({"title": "16 x 20"}, {}, {}, (1, 2, 0, True), 0.6),  # 1 (2 + 0 + 1) / 5
        ({"title": "16 x 20"}, ELSEWHERE, {}, (0.5, 2, 0, True), 0.3),  # 0.5 (2 + 0 + 1) / 5
        # one noun of ten, and of eleven, which weighs more than the same query
        ({"title": TEN}, {**OTHER_LAMP, **ELSEWHERE}, BOTH,
         (0.5, 2, 2, True), 0.5),  # 0.5 (2 + 2 + 1) / 5
        ({"title": ELEVEN}, OTHER_LAMP, BOTH, (0.1, 2, 2, True), 0.1),  # 0.1 · 5 / 5
        ({"title": ELEVEN}, {**OTHER_LAMP, "pricing": "$41"}, BOTH,
         (0.1, 2, 2, False), 0.08),  # 0.1 (2 + 2 + 0) / 5
        # no noun: nothing, whatever else fits
        ({}, {"name": "Orrin Mug"}, BOTH, (0, 2, 2, True), 0.0),  # 0 (2 + 2 + 1) / 5
        # nothing fits but the type
        ({"price_limit": 20.0}, {"attributes": []}, {}, (1, 0, 0, False), 0.0),  # 1 (0 + 0 + 0) / 5
    ],
)  # fmt: skip
def test_reward_by_hand(asked, bought, chosen, parts, total):
    got = reward(dataclasses.replace(ASKED, **asked), lamp(**bought), chosen)
    assert tuple(got[1:]) == parts
    assert got.total == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize(
    "title,levels,query,expected",
    [
        ("Acme Steel Mug", "x", "y", 1.0),  # the title alone
        ("Steel Pan One Two Three Four", "x", "y", 1.0),  # 1 of 3 nouns
        ("Cup", MUG.levels, "mug", 0.0),  # no noun in common, whatever else fits
        ("Acme", "Home › Kitchen › Pans", "pan", 1.0),
    ],
)
def test_type_reward_by_hand(title, levels, query, expected):
    bought = product_of(raw("B000000003", title, levels, query), {})
    assert type_reward(goal(), bought) == expected


def test_type_reward_with_few_nouns_in_common():
    long = "Acme Steel Mug Cup Glass Pot Pan Bowl Plate Fork Knife Spoon"
    other = product_of(raw("B000000003", "Acme", "a › b", "other"), {})
    assert type_reward(goal(title=long), other) == 0.1  # 1 of 12
    near = product_of(raw("B000000003", "Acme Steel", "a › b", "other"), {})
    assert type_reward(goal(title=long), near) == 0.5  # 2 of 12, nothing else
    assert type_reward(goal(title=long, query="other"), near) == 1.0
    assert type_reward(goal(title=long, levels="b › a › c"), near) == 1.0  # two levels
    assert type_reward(goal(title=long, levels="a › c"), near) == 0.5  # one is too few


def test_colours_are_plain():
    assert colour("midnight navy") == "midnight" and colour("0x12") == "0x12"
    assert matched_options(["navy blue"], ["blue (navy)"]) == 1
    assert matched_options(["large"], ["x-large"]) == 1  # a token set: as in the original
    assert matched_options(["large"], ["small"]) == 0


def test_nouns_of_titles():
    assert title_nouns("Men's T-Shirt with 2 Pockets for Work, X") == {
        "men", "t", "shirt", "pockets", "work",
    }  # fmt: skip


# --- goals --------------------------------------------------------------------------------------


def with_instruction(**known):
    options = {"size": [{"value": "s"}, {"value": "m"}], "color": [{"value": "red"}]}
    return product_of(
        raw("B000000004", "Shirt", customization_options=options),
        {"instruction": "Find me shirt", "instruction_attributes": ["soft"]} | known,
    )


def test_goals_are_all_combinations_of_options():
    shirt = with_instruction()
    goals = all_goals([MUG, shirt])
    assert sorted(str(dict(g.options)) for g in goals) == [
        "{'color': 'red', 'size': 'm'}", "{'color': 'red', 'size': 's'}",
    ]  # fmt: skip
    limit = price_limit(shirt, shirt.asin)
    # The higher one of two of 20, 30, 40 and 50.
    assert {price_limit(shirt, str(key)) for key in range(50)} == {30.0, 40.0, 50.0}
    assert goals[0].instruction.startswith("Find me shirt with color: red, and size: ")
    assert goals[0].instruction.endswith(f", and price lower than {limit:.2f} dollars")
    assert not all_goals([with_instruction(instruction_attributes=[])])


def test_an_expensive_product_has_no_limit():
    dear = product_of(raw("B000000005", "Ring", pricing="$985"), {})
    assert price_limit(dear, "x") == NO_LIMIT


def test_human_goals():
    written = {"instruction": "A red shirt.", "instruction_attributes": ["soft"],
               "instruction_options": ["red"]}  # fmt: skip
    asks_nothing = {**written, "instruction_attributes": []}
    shirt = product_of(raw("B000000006", "Shirt"), {}, [written, asks_nothing])
    (only,) = all_goals([shirt], human=True)
    assert only.instruction.startswith("A red shirt, and price lower than")
    assert list(only.options.values()) == ["red"]


def test_the_shuffle_is_one_for_all():
    goals = open_shop().goals
    assert [g.asin for g in all_goals(generated_catalogue())] == [g.asin for g in goals]
    assert len({(g.asin, str(g.options)) for g in goals}) == len(goals)


# --- search -------------------------------------------------------------------------------------


def test_search_ranks_by_bm25():
    index = Index([MUG, LAMP])
    terms = index.terms("The Lamps' 3.5-inch mug's of U.S.A")
    assert terms == ["lamp", "3.5", "inch", "mug", "u.s.a"]
    assert index.search("mugs") == [0] and index.search("bright steel lamp") == [1, 0]
    assert index.search("nothing of this") == []


@pytest.mark.parametrize(("text", "terms"), LUCENE["texts"])
def test_texts_are_cut_and_stemmed_as_by_lucene(text, terms):
    assert open_shop().index.terms(text) == terms


def test_the_embedded_shop_ranks_as_lucene_does():
    shop = open_shop()
    for query, best in LUCENE["embedded"]:
        assert [shop.products[i].asin for i in shop.index.search(query, 50)] == best, query


def test_lengths_are_rounded_as_in_lucene():
    assert [rounded_length(n) for n in (0, 23, 24, 39, 40, 41, 55, 56, 100, 1000)] == [
        0, 23, 24, 39, 40, 40, 54, 56, 96, 984,
    ]  # fmt: skip


# --- pages --------------------------------------------------------------------------------------


def test_pages_read_as_in_the_original():
    ask = "Find me a mug"
    assert (
        page_text(Page(), PRODUCTS, ask)
        == "WebShop [SEP] Instruction: [SEP] Find me a mug [SEP] Search"
    )
    assert page_text(Page("results", (0, 1)), PRODUCTS, ask) == (
        "Instruction: [SEP] Find me a mug [SEP] Back to Search [SEP] Page 1 (Total results: 2) "
        "[SEP] B000000001 [SEP] Acme Steel Mug [SEP] $12.5 to $20.0 "
        "[SEP] B000000002 [SEP] Bright Lamp [SEP] $100.0"
    )
    item = Page("item", (0, 1), product=0)
    assert page_text(item, PRODUCTS, ask) == (
        "Instruction: [SEP] Find me a mug [SEP] Back to Search [SEP] < Prev [SEP] color [SEP] "
        "navy | blue [SEP] red [SEP] Acme Steel Mug [SEP] Price: $12.5 to $20.0 [SEP] Rating: N.A. "
        "[SEP] Description [SEP] Features [SEP] Reviews [SEP] Attributes [SEP] Buy Now"
    )
    assert page_text(item, PRODUCTS, ask, "short") == (
        "color\nnavy | blue\nred\nacme steel mug\nprice: $12.5 to $20.0\n"
        "description\nfeatures\nreviews\nattributes\nbuy now"
    )
    assert page_text(Page("features", (), product=0), PRODUCTS, ask, "short") == "dishwasher safe."


def test_fifty_results_are_five_pages():
    many = tuple([MUG] * 50)
    page = Page("results", tuple(range(50)), number=1)
    assert clickables(page, many)[:2] == ["back to search", "next >"]
    assert clickables(Page("results", tuple(range(50)), 3), many)[:3] == [
        "back to search", "< prev", "next >",
    ]  # fmt: skip
    last = clickables(Page("results", tuple(range(45)), 5), many)
    assert last[:2] == ["back to search", "< prev"] and len(last) == 2 + 5


def test_parts_say_what_can_be_clicked_and_what_is_chosen():
    page = Page("item", (0,), product=0, chosen=(("color", "red"),))
    parts = page_parts(page, PRODUCTS, "a <b> mug")
    assert ("chosen", "red") in parts and ("button", "navy | blue") in parts
    assert ("text", "a <b> mug") in parts and ("button", "Buy Now") in parts


# --- the environment ----------------------------------------------------------------------------


@pytest.fixture
def env():
    return WebShopEnvironment()


def test_an_oracle_earns_everything(env):
    shop_ = open_shop()
    for number in range(0, len(shop_.goals), 25):
        wanted = shop_.goals[number]
        env.start(Task("webshop", wanted.category, number))
        product = shop_.products[shop_.number[wanted.asin.lower()]]
        assert env.step(f"search[{product.title}]").valid
        assert env.step(f"click[{wanted.asin}]").valid
        for value in wanted.options.values():
            assert env.step(f"click[{value}]").valid
        end = env.step("click[Buy Now]")
        assert end.done and end.success and end.score == 100.0, wanted


def test_what_means_nothing_changes_nothing(env):
    start = env.start(Task("webshop", "x", 0))
    for action in (
        "buy it",
        "click[Buy Now]",
        "click[next >]",
        "search[]",
        "look",
        "click[B000000009]",
        "search[lamp [steel]",  # no bracket inside, as in the original
    ):
        result = env.step(action)
        assert not result.valid and not result.done and result.observation == start.observation
    env.step("search[lamp]")
    assert env.step("click[back to search]").observation == start.observation
    assert env.step("search[lamp] and then more").valid, "what follows is not looked at"


def test_one_may_search_from_any_page(env):
    env.start(Task("webshop", "x", 0))
    lamps, shirts = env.step("search[lamp]"), env.step("search[shirt]")
    assert shirts.valid and shirts.observation != lamps.observation
    env.step(f"click[{env.clickables()[-1]}]")
    assert env.step("search[lamp]").observation == lamps.observation


def test_a_value_of_two_options_is_the_last_ones(env, monkeypatch):
    env.start(Task("webshop", "x", 0))
    twice = {"size": ("one", "two"), "pack": ("two", "three"), "color": ("red",)}
    product = dataclasses.replace(MUG, options=twice)
    shop = env._shop._replace(products=[product])
    monkeypatch.setattr(type(env), "_shop", shop)
    env._page = Page("item", (0,), product=0)
    env.step("click[one]")
    env.step("click[two]")
    assert env._page.chosen == (("size", "one"), ("pack", "two"))


def test_options_replace_each_other_and_pages_lead_back(env):
    env.start(Task("webshop", "x", 0))
    results = env.step("search[men's polo shirt]")
    first = next(part for part in results.observation.split(" [SEP] ") if part.startswith("B0"))
    item = env.step(f"click[{first}]")
    sizes = [v for v in env.clickables() if v in ("small", "medium", "large", "x-large")]
    env.step(f"click[{sizes[0]}]")
    env.step(f"click[{sizes[1]}]")
    assert ("size", sizes[1]) in env._page.chosen and len(env._page.chosen) == 1
    assert env.step("click[features]").observation != item.observation
    assert env.step("click[< prev]").observation == item.observation
    assert ("size", sizes[1]) in env._page.chosen
    assert env.step("click[< prev]").observation == results.observation
    assert env._page.chosen == ()
    second = env.step("click[next >]")
    assert "Page 2" in second.observation
    assert env.step("click[< prev]").observation == results.observation
    assert ("button", first) in env.parts()


def test_the_end_is_the_end_and_unknown_goals_are_named(env):
    with pytest.raises(ValueError):
        env.step("search[x]")
    env.start(Task("webshop", "x", 0))
    found = env.step("search[lamp]").observation
    env.step(f"click[{next(part for part in found.split(' [SEP] ') if part.startswith('B0'))}]")
    assert env.step("click[buy now]").done
    with pytest.raises(ValueError):
        env.step("search[x]")
    with pytest.raises(UserError, match="no goal 99999: use 0 to"):
        env.start(Task("webshop", "x", 99_999))


# --- splits, expert, files ----------------------------------------------------------------------


def test_the_report_plays_a_tree_again():
    env = WebShopEnvironment(style="short")
    first = tasks.split_tasks("default", "all_types", "", "L0")[0]
    env.start(first)
    found = env.step("search[shirt]")
    asin, other = env.clickables()[-2:]
    elsewhere = env.copy().step(f"click[{other}]").observation
    nodes = [
        {"id": 0, "parent": -1, "action": "", "observation": ""},
        {"id": 1, "parent": 0, "action": "search[shirt]", "observation": found.observation},
        {"id": 2, "parent": 1, "action": "", "observation": ""},  # reasoning alone
        {"id": 3, "parent": 2, "action": f"click[{asin}]"},
        {"id": 4, "parent": 2, "action": f"click[{other}]", "observation": elsewhere},
        {"id": 5, "parent": 1, "action": "click[next >]", "observation": "of another shop"},
        {"id": 6, "parent": 5, "action": "click[< prev]", "observation": found.observation},
    ]
    nodes[3]["observation"] = env.step(f"click[{asin}]").observation
    tree = {"task": dataclasses.asdict(first), "nodes": nodes}
    pages = tree_pages(tree, "", False, "short")
    assert set(pages) == {0, 1, 2, 3, 4}
    assert pages[1] == pages[2] and ("button", asin.upper()) in pages[1]
    assert ("button", "Buy Now") in pages[3] and pages[4] != pages[3]


def test_splits_share_no_goal():
    parts = {
        s: tasks.split_tasks("default", "held_out", "", s) for s in ("train", "L0", "L1", "L2")
    }
    numbers = [task.variation for part in parts.values() for task in part]
    assert len(numbers) == len(set(numbers))
    assert {task.type for task in parts["L2"]} == {"grocery"}
    assert not any(t.type == "grocery" for s in ("train", "L0", "L1") for t in parts[s])
    whole = tasks.split_tasks("default", "all_types", "", "L1")
    assert sorted(t.variation for t in whole) == list(range(250))
    assert max(t.variation for t in parts["L2"]) < 250
    with pytest.raises(UserError, match="no L2"):
        tasks.split_tasks("default", "all_types", "", "L2")
    with pytest.raises(UserError, match="synthetic"):
        tasks.split_tasks("find-plant", "all_types", "", "L1")


def test_the_shopper_reads_wishes():
    wish = read_wish(
        "Find me eco friendly, easy install night stands with storage space for living room "
        "with color: dark brown, and item type name: a, b, and price lower than 40.00 dollars"
    )
    assert wish.attributes == ("eco friendly", "easy install", "storage space", "living room")
    assert wish.kind == "night stands"
    assert wish.options == (("color", "dark brown"), ("item type name", "a, b"))
    assert wish.limit == 40.0
    assert read_wish("a red mug").words == "a red mug"


def test_one_may_judge_wrongly_where_an_option_is_missing():
    env, judged = WebShopEnvironment(style="short"), 0
    for task in tasks.split_tasks("default", "all_types", "", "train")[:60]:
        path = shop(env, task)
        turns = rendered_turns(path)
        steps = [parse_response(response) for response, _ in turns]
        for i, step in enumerate(path.steps):
            wrong = misjudged(steps, [seen for _, seen in turns], i)
            assert (wrong is not None) == (" is missing; " in step.reasoning)
            if wrong is None:
                continue
            judged += 1
            reasoning, action = wrong
            before, name = step.reasoning.split(" is missing")[0].rsplit(": ", 1)
            option = before.split("; ")[-1]
            assert reasoning == f"{before}: {name} is there; choose {option}: {name}."
            env.start(task)
            for earlier in path.steps[:i]:
                env.step(earlier.action)
            result = env.step(action)  # it is refused, and nothing has changed
            assert (result.observation, result.valid, result.done) == (REFUSED, False, False)
            assert env.step(step.action).observation == step.observation
    assert judged > 5


def test_the_shopper_wins_and_marks_choices(env):
    paths = [shop(env, Task("webshop", "x", number)) for number in range(0, 250, 2)]
    assert sum(path.score >= 100 for path in paths) >= 0.9 * len(paths)
    steps = [step for path in paths for step in path.steps]
    assert 0.1 < sum(step.explore for step in steps) / len(steps) < 0.4
    for path in paths:
        assert path.steps[0].action.startswith("search[") and not path.steps[0].explore
        assert all(step.alternatives for step in path.steps if step.explore)
        replay = WebShopEnvironment()
        replay.start(path.task)
        assert [replay.step(s.action).observation for s in path.steps] == [
            s.observation for s in path.steps
        ]


def test_the_shopper_says_what_it_has_read_and_no_more():
    """The full pages repeat the goal, which is no description of the product."""
    full, short = WebShopEnvironment(), WebShopEnvironment(style="short")
    verdicts = collections.Counter()
    for number in range(0, 120, 3):
        task = Task("webshop", "x", number)
        paths = [shop(env, task).steps for env in (full, short)]
        told = [[(s.action.lower(), s.reasoning.lower()) for s in steps] for steps in paths]
        assert told[0] == told[1]
        verdicts.update(re.findall(r" is (not said|said|there|missing|chosen)", str(told[1])))
        for _, text in told[1]:  # points begin with the words of the instruction and of the page
            named = re.findall(r"([a-z ]+: [^;]+) is (?:there|missing|chosen)", text)
            limits = re.findall(r"price: \$[^;]+, (?:not )?(lower than [\d.]+)", text)
            goal = short.start(task).goal
            assert all(words.strip() in goal for words in named + limits), text
    assert len(verdicts) == 5 and min(verdicts.values()) >= 5


def write_shop(folder: pathlib.Path) -> None:
    files = generated_files()
    (folder / "items_shuffle_1000.json").write_text(json.dumps([product for product, _ in files]))
    known = {product["asin"]: entry for product, entry in files}
    (folder / "items_ins_v2_1000.json").write_text(json.dumps(known))


def test_the_originals_files_are_read(tmp_path):
    write_shop(tmp_path)
    assert tuple(read_catalogue(tmp_path)) == generated_catalogue()
    file = tmp_path / "items_shuffle_1000.json"
    entries = json.loads(file.read_text())
    twice = [{**entries[0], "name": "later"}, {**entries[0], "asin": "nan"}]
    file.write_text(json.dumps([*entries, *twice, {**entries[0], "asin": "B0123456789"}]))
    assert tuple(read_catalogue(tmp_path)) == generated_catalogue()


def test_missing_and_broken_files_end_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match="items_shuffle_1000.json"):
        read_catalogue(tmp_path)
    write_shop(tmp_path)
    file = tmp_path / "items_shuffle_1000.json"
    text = file.read_text()
    for broken in (text[:5000], text.replace("[", "7", 1)):
        file.write_text(broken)
        with pytest.raises(UserError, match="cut off or not"):
            read_catalogue(tmp_path)
    file.write_text(text)
    (tmp_path / "items_ins_v2_1000.json").write_text("[]")
    with pytest.raises(UserError, match="ins_v2_1000.json .*not JSON .a list where an object"):
        read_catalogue(tmp_path)


@pytest.mark.parametrize(
    "change,why",
    [
        (lambda product: {**product, "pricing": "$12.99 ($0.50 / oz.)"},
         r"the pricing '\$12.99 \(\$0.50 / oz.\)' is not like '\$19.99'"),
        (lambda product: {**product, "pricing": [12.99]}, "'list' object has no attribute"),
        (lambda product: {k: v for k, v in product.items() if k != "query"}, "KeyError: 'query'"),
        (lambda product: {**product, "asin": 17}, "TypeError"),
        (lambda product: "a lamp", "'str' object has no attribute"),
        (lambda product: None, "'NoneType' object has no attribute"),
        (lambda product: {**product, "customization_options": {"size": ["s"]}}, "TypeError"),
    ],
)  # fmt: skip
def test_a_product_that_is_none_is_named(tmp_path, change, why):
    write_shop(tmp_path)
    file = tmp_path / "items_shuffle_1000.json"
    entries = json.loads(file.read_text())
    entries[2] = change(entries[2])
    file.write_text(json.dumps(entries))
    with pytest.raises(UserError, match=rf"_1000.json: product 3 is not as .*{why}.*; correct it"):
        read_catalogue(tmp_path)


@pytest.mark.parametrize(
    "entry,why",
    [
        ({"instruction": "A lamp."}, "KeyError: 'instruction_attributes'"),
        ({"instruction_attributes": ["soft"]}, "KeyError: 'instruction'"),
        ({"instruction_attributes": None, "instruction": "A lamp."}, "TypeError"),
        ({"instruction_attributes": ["soft"], "instruction": None}, "AttributeError"),
        ("A lamp.", "TypeError"),
    ],
)
def test_an_instruction_that_is_none_is_named(tmp_path, entry, why):
    write_shop(tmp_path)
    asin = generated_catalogue()[4].asin
    good = {"instruction": "A lamp.", "instruction_attributes": ["soft"], "instruction_options": []}
    (tmp_path / "items_human_ins.json").write_text(json.dumps({asin: [good, entry]}))
    assert len(open_shop(str(tmp_path)).goals) == 1251  # the synthetic ones do without it
    with pytest.raises(UserError, match=f"_ins.json: instruction 2 of product {asin} .*{why}"):
        open_shop(str(tmp_path), human=True)
