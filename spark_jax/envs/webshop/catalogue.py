"""WebShop's products, read from its own files (princeton-nlp/WebShop) or from the embedded shop."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spark_jax.types import UserError

# Product and attribute file of the original's two sets, the small one of 1,000 products first.
FILES = (
    ("items_shuffle_1000.json", "items_ins_v2_1000.json"),
    ("items_shuffle.json", "items_ins_v2.json"),
)
HUMAN_FILE = "items_human_ins.json"
NO_PRICE = (100.0,)  # what the original asks for a product without a price
NO_ATTRIBUTES = ("DUMMY_ATTR",)


@dataclasses.dataclass(frozen=True)
class Product:
    """What the shop knows of one product."""

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    category: str  # one of a few: beauty, electronics, …
    query: str  # the search that found it, lower case
    levels: str  # "Home & Kitchen › Furniture › …"
    prices: tuple[float, ...]  # one, or the ends of a range
    options: Mapping[str, tuple[str, ...]]  # "size" -> its values, lower case
    attributes: tuple[str, ...]  # what a goal may ask for; the shop does not show them
    instruction: str = ""  # of the synthetic goals, "" if it has none
    instruction_attributes: tuple[str, ...] = ()
    human: tuple[Mapping[str, Any], ...] = ()  # instructions that people wrote

    @property
    def price_tag(self) -> str:
        return " to ".join(f"${price}" for price in self.prices)

    @property
    def price(self) -> float:
        """What is charged: of a range a number drawn once, by the product's own name."""
        if len(self.prices) == 1:
            return self.prices[0]
        return random.Random(f"price {self.asin}").uniform(*self.prices)


def read_catalogue(folder: str | Path) -> list[Product]:
    """Products of a folder with the original files, in their order, none twice.

    The product file is streamed: memory goes into the products, not into its text.
    Raises UserError for a folder without the files or with a broken one.
    """
    folder = Path(folder)
    products, attribute_file = _files(folder)
    attributes = _read(attribute_file)
    human_file = folder / HUMAN_FILE
    human = _read(human_file) if human_file.is_file() else {}
    out: dict[str, Product] = {}
    for number, raw in enumerate(_stream(products), 1):
        try:  # the original stops at such a product, too
            asin = raw.get("asin", "nan")
            if asin == "nan" or len(asin) > 10 or asin in out:
                continue
            out[asin] = product_of(raw, attributes.get(asin, {}), human.get(asin, ()))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{products}: product {number} is not as in WebShop's files "
                f"({type(error).__name__}: {error}); correct it, or download the file again."
            ) from error
    if not out:
        raise UserError(f"{products} holds no product; download WebShop's data again.")
    return list(out.values())


def product_of(raw: Mapping[str, Any], known: Mapping[str, Any], human=()) -> Product:
    """A product from its entries in the product and attribute files, by the original's rules."""
    bullets = raw["small_description"] or []
    bullets = bullets if isinstance(bullets, list) else [bullets]
    return Product(
        asin=raw["asin"],
        title=raw["name"] or "",
        description=raw["full_description"] or "",
        bullets=tuple(bullets),
        category=raw["category"],
        query=raw["query"].lower().strip(),
        levels=raw["product_category"],
        prices=_prices(raw.get("pricing")),
        options=_options(raw.get("customization_options")),
        attributes=tuple(known.get("attributes") or NO_ATTRIBUTES),
        instruction=known.get("instruction") or "",
        instruction_attributes=tuple(known.get("instruction_attributes") or ()),
        human=tuple(human),
    )


def _prices(text: str | None) -> tuple[float, ...]:
    """ "$19.99" or "$19.99$27.99" (also with words between): at most two numbers. Raises ValueError
    for a text that is no price."""
    parts = [re.sub(r"[^\d.]", "", part) for part in (text or "").split("$")[1:]]
    try:
        return tuple(float(part) for part in parts if part)[:2] or NO_PRICE
    except ValueError as error:
        raise ValueError(f"the pricing {text!r} is not like '$19.99' or '$19.99$27.99'") from error


def _options(raw: Mapping[str, Any] | str | None) -> dict[str, tuple[str, ...]]:
    return {
        name.lower(): tuple(
            " ".join(value["value"].replace("/", " | ").lower().split()) for value in values
        )
        for name, values in (raw or {}).items()
        if values is not None
    }


def _files(folder: Path) -> tuple[Path, Path]:
    """Product and attribute file of the set in the folder; of two sets the small one."""
    for names in FILES:
        pair = tuple(folder / name for name in names)
        if all(file.is_file() for file in pair):
            return pair
    pairs = " or ".join(" and ".join(names) for names in FILES)
    raise UserError(
        f"env.data_dir={folder} does not have {pairs}: put WebShop's files there, or leave "
        "env.data_dir empty for the embedded shop."
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__} where an object is expected")
        return content
    except ValueError as error:
        raise _broken(file, error) from error


def _stream(file: Path) -> Iterator[dict[str, Any]]:
    try:
        import ijson
    except ImportError as error:
        raise UserError("WebShop's files need ijson: pip install -e '.[webshop]'.") from error
    try:
        with file.open("rb") as stream:
            yield from ijson.items(stream, "item", use_float=True)
    except ijson.JSONError as error:
        raise _broken(file, error) from error


def _broken(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} is cut off or not JSON ({error}); download it again.")
