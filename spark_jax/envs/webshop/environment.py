"""WebShop as a text environment: search, compare, choose options, buy. No browser, no Java; the
state of an episode is one small `Page`."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from spark_jax.envs.webshop.catalogue import Product, read_catalogue
from spark_jax.envs.webshop.generate import generated_catalogue
from spark_jax.envs.webshop.goals import Goal, all_goals
from spark_jax.envs.webshop.pages import (
    BACK,
    BUY,
    MOST_RESULTS,
    NEXT,
    PREVIOUS,
    SUB_PAGES,
    Page,
    Style,
    clickables,
    page_parts,
    page_text,
)
from spark_jax.envs.webshop.reward import Reward, reward
from spark_jax.envs.webshop.search import Index
from spark_jax.types import Start, StepResult, Task, UserError

REFUSED = "that is not on this page."  # the short style's answer to what means nothing here
# As the original reads it: no "[" inside, what follows the last "]" is not looked at.
_ACTION = re.compile(r"\s*(search|click)\[([^\[]+)\]")


class Shop(NamedTuple):
    """Products, their index and the goals; shared by all environments of a process."""

    products: Sequence[Product]
    number: dict[str, int]  # asin, lower case -> product
    index: Index
    goals: Sequence[Goal]


@functools.cache
def open_shop(data_dir: str = "", human: bool = False) -> Shop:
    """The shop in `data_dir`, or the embedded one for "". Raises UserError for missing files, and
    for human goals where there are none."""
    products = read_catalogue(data_dir) if data_dir else generated_catalogue()
    goals = all_goals(products, human)
    if not goals:
        raise UserError(
            f"There are no {'human' if human else 'synthetic'} goals in "
            f"{data_dir or 'the embedded shop'}: set env.tasks to the other kind."
        )
    number = {product.asin.lower(): i for i, product in enumerate(products)}
    return Shop(products, number, Index(products), goals)


class WebShopEnvironment:
    """One shopper. A purchase ends the episode; its reward is the score.

    Args:
      data_dir: folder with WebShop's files, "" for the embedded shop.
      human: goals that people wrote.
      style: how pages read (pages.page_text).
    """

    def __init__(self, data_dir: str = "", human: bool = False, style: Style = "full"):
        self._data_dir, self._human, self._style = data_dir, human, style
        self._goal: Goal | None = None
        self._page = Page()
        self._done = True
        self.bought: Reward | None = None  # what the purchase was worth, with its parts

    def start(self, task: Task) -> Start:
        """The search page. Raises UserError for a goal that does not exist."""
        shop = self._shop
        if not 0 <= task.variation < len(shop.goals):
            raise UserError(
                f"webshop has no goal {task.variation}: use 0 to {len(shop.goals) - 1}."
            )
        self._goal, self._page = shop.goals[task.variation], Page()
        self._done, self.bought = False, None
        return Start(self._goal.instruction, self._text())

    def step(self, action: str) -> StepResult:
        """`search[words]` or `click[thing]`; anything else leaves the page as it is. Then the
        original shows the page once more; the short style says that it was nothing."""
        if self._goal is None or self._done:
            raise ValueError("step() was called before start() or after the end of the episode")
        match = _ACTION.match(action)
        verb, thing = (match[1], " ".join(match[2].split()).lower()) if match else ("", "")
        page = self._turn(verb, thing)
        valid = page is not None
        if page is not None:
            self._page = page
        if self.bought:
            self._done = True
            score = 100.0 * self.bought.total
            text = f"Thank you for shopping with us! Your score: {score:.1f} of 100."
            return StepResult(text, score, True, self.bought.total >= 1.0, True)
        text = REFUSED if self._style == "short" and not valid else self._text()
        return StepResult(text, 0.0, False, False, valid)

    def close(self) -> None:
        """Nothing to give back."""

    def copy(self) -> WebShopEnvironment:
        """Another shopper in the same place."""
        return copy.copy(self)

    def parts(self) -> list[tuple[str, str]]:
        """The current page for people (pages.page_parts)."""
        return page_parts(self._page, self._shop.products, self._goal.instruction)

    def clickables(self) -> list[str]:
        """What can be clicked now."""
        return clickables(self._page, self._shop.products)

    @property
    def _shop(self) -> Shop:
        return open_shop(self._data_dir, self._human)

    def _text(self) -> str:
        return page_text(self._page, self._shop.products, self._goal.instruction, self._style)

    def _turn(self, verb: str, thing: str) -> Page | None:
        """The page that an action leads to; None for one that means nothing here."""
        page = self._page
        if verb == "search":  # anywhere, as in the original, though one page only has a box
            found = self._shop.index.search(thing, MOST_RESULTS)
            return Page("results", tuple(found))
        if verb != "click" or thing not in self.clickables():
            return None
        if thing == BACK:
            return Page()
        if thing == NEXT:
            return dataclasses.replace(page, number=page.number + 1)
        if thing == PREVIOUS:
            if page.name == "results":
                return dataclasses.replace(page, number=page.number - 1)
            if page.name == "item":
                return Page("results", page.results, page.number)
            return dataclasses.replace(page, name="item")
        if page.name == "results":
            return dataclasses.replace(page, name="item", product=self._shop.number[thing])
        if thing in SUB_PAGES:
            return dataclasses.replace(page, name=thing)
        if thing == BUY:
            self.bought = reward(self._goal, self._shop.products[page.product], dict(page.chosen))
            return page
        return dataclasses.replace(page, chosen=self._choose(page, thing))

    def _choose(self, page: Page, value: str) -> tuple[tuple[str, str], ...]:
        """The chosen options with `value` in the place of its name's former one. A value of two
        options is the last one's, as in the original."""
        options = self._shop.products[page.product].options
        *_, name = (name for name, values in options.items() if value in values)
        return (*((n, v) for n, v in page.chosen if n != name), (name, value))
