"""What a shopper is asked for: WebShop's goals, in one fixed order.

Synthetic goals ask for one product with one combination of its options, and for a price below a
limit; human goals carry an instruction that a person wrote. The first 500 of the shuffled goals
are the test set, the rest is for training: one shuffle, for all workers and all runs.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Mapping, Sequence

from spark_jax.envs.webshop.catalogue import HUMAN_FILE, Product
from spark_jax.types import UserError

SHUFFLE_SEED = 233  # the original's
PRICE_LIMITS = tuple(10.0 * i for i in range(1, 100))
NO_LIMIT = 1_000_000.0


@dataclasses.dataclass(frozen=True)
class Goal:
    """One shopping task."""

    asin: str  # of the product it was made from
    instruction: str
    category: str
    query: str
    title: str
    levels: str
    attributes: tuple[str, ...]
    options: Mapping[str, str]  # asked for: name -> value
    price_limit: float


def all_goals(products: Sequence[Product], human: bool = False) -> list[Goal]:
    """All goals, shuffled once. `human`: those that people wrote instead of the synthetic ones."""
    make = _human_goals if human else _synthetic_goals
    goals = [goal for product in products for goal in make(product)]
    random.Random(SHUFFLE_SEED).shuffle(goals)
    return goals


def _synthetic_goals(product: Product) -> list[Goal]:
    if not product.instruction or not product.instruction_attributes:
        return []
    limit = price_limit(product, product.asin)
    names = sorted(product.options)
    goals = []
    for values in itertools.product(*(product.options[name] for name in names)):
        options = dict(zip(names, values, strict=True))
        wanted = ", and ".join(f"{name}: {value}" for name, value in options.items())
        text = product.instruction + (f" with {wanted}" if wanted else "")
        goals.append(_goal(product, text, product.instruction_attributes, options, limit))
    return goals


def _human_goals(product: Product) -> list[Goal]:
    goals = []
    for i, written in enumerate(product.human):
        try:  # the original stops at such an instruction, too
            attributes = tuple(written["instruction_attributes"])
            text = written["instruction"].strip(".") if attributes else ""
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{HUMAN_FILE}: instruction {i + 1} of product {product.asin} is not as in "
                f"WebShop's file ({type(error).__name__}: {error}); correct it, or download the "
                "file again."
            ) from error
        if attributes:
            # The option values alone, whatever they are values of.
            options = {str(j): v for j, v in enumerate(written.get("instruction_options") or ())}
            limit = price_limit(product, f"{product.asin} {i}")
            goals.append(_goal(product, text, attributes, options, limit))
    return goals


def price_limit(product: Product, key: str) -> float:
    """The higher of two of the four limits next above the price, drawn by `key`."""
    above = [limit for limit in PRICE_LIMITS if limit > product.price][:4]
    if len(above) < 2:
        return NO_LIMIT
    return max(random.Random(f"limit {key}").sample(above, 2))


def _goal(product: Product, text: str, attributes, options, limit: float) -> Goal:
    below = f", and price lower than {limit:.2f} dollars" if limit < NO_LIMIT else ""
    return Goal(
        asin=product.asin,
        instruction=text + below,
        category=product.category,
        query=product.query,
        title=product.title,
        levels=product.levels,
        attributes=tuple(attributes),
        options=options,
        price_limit=limit,
    )
