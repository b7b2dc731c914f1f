"""The shop's pages: where one can be, what one reads there, what can be clicked.

A page is plain data; `page_text` is what the agent reads (the page's strings joined by " [SEP] ",
as in WebShop's text observation), `page_parts` the same for people.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from spark_jax.envs.webshop.catalogue import Product

PAGE_SIZE = 10  # results on a page
MOST_RESULTS = 50

Name = Literal["search", "results", "item", "description", "features", "reviews", "attributes"]
Style = Literal["full", "short"]
SUB_PAGES: tuple[Name, ...] = ("description", "features", "reviews", "attributes")

_ON_EVERY_PAGE = ("WebShop", "Back to Search", "< Prev", "Rating: N.A.")
BACK, NEXT, PREVIOUS, BUY = "back to search", "next >", "< prev", "buy now"


@dataclasses.dataclass(frozen=True)
class Page:
    """Where a shopper is. Everything a fork has to keep of an episode."""

    name: Name = "search"
    results: tuple[int, ...] = ()  # numbers of the found products, best first
    number: int = 1  # of the results page
    product: int = -1  # the opened one
    chosen: tuple[tuple[str, str], ...] = ()  # options: (name, value), in order of choice


def clickables(page: Page, products: Sequence[Product]) -> list[str]:
    """What `click[...]` understands here, lower case, in the order of the page."""
    if page.name == "search":
        return []  # the button "search" is the action `search[...]`
    if page.name == "results":
        more = [PREVIOUS] if page.number > 1 else []
        more += [NEXT] if page.number * PAGE_SIZE < len(page.results) else []
        return [BACK, *more, *(products[i].asin.lower() for i in shown(page))]
    if page.name == "item":
        values = [value for values in products[page.product].options.values() for value in values]
        return [BACK, PREVIOUS, *dict.fromkeys(values), *SUB_PAGES, BUY]
    return [BACK, PREVIOUS]


def shown(page: Page) -> tuple[int, ...]:
    """Products of this page of the results."""
    return page.results[(page.number - 1) * PAGE_SIZE : page.number * PAGE_SIZE]


def page_strings(page: Page, products: Sequence[Product], instruction: str) -> list[str]:
    """All strings of a page, from top to bottom, as the original's."""
    out = ["WebShop"] if page.name == "search" else []
    out += ["Instruction:", instruction]
    if page.name == "search":
        return [*out, "Search"]
    out.append("Back to Search")
    if page.name == "results":
        out.append(f"Page {page.number} (Total results: {len(page.results)})")
        out += ["< Prev"] if page.number > 1 else []
        out += ["Next >"] if page.number * PAGE_SIZE < len(page.results) else []
        for i in shown(page):
            out += [products[i].asin, products[i].title, products[i].price_tag]
        return out
    product = products[page.product]
    out.append("< Prev")
    if page.name == "item":
        for name, values in product.options.items():
            out += [name, *values]
        out += [product.title, f"Price: {product.price_tag}", "Rating: N.A."]
        return [*out, "Description", "Features", "Reviews", "Attributes", "Buy Now"]
    if page.name == "description":
        return [*out, product.description]
    if page.name == "features":
        return [*out, *product.bullets]
    if page.name == "attributes":
        return [*out, *product.attributes, product.category, product.query, product.levels]
    return [*out, "No reviews."]


def page_text(
    page: Page, products: Sequence[Product], instruction: str, style: Style = "full"
) -> str:
    """What the agent reads. `short` leaves out the instruction and what stands on every page, and
    is in lower case: a small model then sees that a title says what the goal asks for."""
    strings = [" ".join(text.split()) for text in page_strings(page, products, instruction)]
    if style == "short":
        same = {"Instruction:", " ".join(instruction.split()), *_ON_EVERY_PAGE}
        kept = "\n".join(text for text in strings if text and text not in same)
        return kept.lower() or "search"
    return " [SEP] ".join(text for text in strings if text)


def page_parts(
    page: Page, products: Sequence[Product], instruction: str
) -> list[tuple[Literal["text", "button", "chosen"], str]]:
    """The page for people, from top to bottom: what can be clicked, what is chosen, the rest."""
    buttons = {*clickables(page, products), "search"}
    chosen = {value for _, value in page.chosen}
    return [
        (
            "chosen" if text.lower() in chosen else "button" if text.lower() in buttons else "text",
            text,
        )
        for text in page_strings(page, products, instruction)
    ]
