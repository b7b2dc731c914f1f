"""The reward of a purchase, by WebShop's rules (arXiv 2207.01206, section 3.3):

r = r_type (attributes matched + options matched + [price <= limit])
    / (attributes asked for + options asked for + 1)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from thefuzz import fuzz

from spark_jax.envs.webshop.catalogue import Product
from spark_jax.envs.webshop.goals import Goal
from spark_jax.envs.webshop.nouns import title_nouns

MATCH = 85  # a token-set ratio above this is a match

# The first of these that is part of a colour stands for it.
COLOURS = tuple(
    """alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux
    bronze brown burgundy camel camo caramel champagne charcoal cheetah chestnut chocolate
    christmas coffee cognac copper coral cranberry cream crystal dark denim eggplant
    elephant espresso fuchsia gold granite grape graphite grass gray green grey heather
    indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve
    merlot midnight mint mocha multicolor mushroom mustard natural navy nude olive orange
    peach pewter pink plum purple rainbow red rose royal rust sand sapphire seashell silver
    skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise violet walnut
    wheat white wine yellow""".split()
)


class Reward(NamedTuple):
    """The reward and its parts."""

    total: float  # 0..1
    type: float  # r_type: 0, 0.1, 0.5 or 1
    attributes: int  # matched
    options: int  # matched
    price: bool  # not above the limit


def reward(goal: Goal, product: Product, chosen: Mapping[str, str]) -> Reward:
    """Of buying `product` with the options `chosen` (name -> value)."""
    kind = type_reward(goal, product)
    attributes = sum(_has_attribute(product, wanted) for wanted in goal.attributes)
    options = matched_options(goal.options.values(), chosen.values())
    price = product.price <= goal.price_limit
    asked = len(goal.attributes) + len(goal.options) + 1
    return Reward(kind * (attributes + options + price) / asked, kind, attributes, options, price)


def type_reward(goal: Goal, product: Product) -> float:
    """Whether it is the kind of thing that was asked for."""
    wanted, bought = title_nouns(goal.title), title_nouns(product.title)
    title = len(wanted & bought) / len(wanted) if wanted else 0.2
    same_levels = {level.strip() for level in product.levels.split("›")} & {
        level.strip() for level in goal.levels.split("›")
    }
    if title == 0.0:
        return 0.0
    if title < 0.1:
        return 0.1
    return 1.0 if product.query == goal.query or len(same_levels) >= 2 or title > 0.2 else 0.5


def _has_attribute(product: Product, wanted: str) -> bool:
    if any(fuzz.token_set_ratio(has, wanted) > MATCH for has in product.attributes):
        return True
    texts = product.title, " ".join(product.bullets), product.description
    return any(wanted in text.lower() for text in texts)


def matched_options(wanted, chosen) -> int:
    """How many of the wanted option values one of the chosen ones fits."""
    chosen = [colour(value) for value in chosen]
    return sum(
        any(fuzz.token_set_ratio(value, colour(goal)) > MATCH for value in chosen)
        for goal in wanted
    )


def colour(value: str) -> str:
    """The plain colour in an option value; the value itself if there is none."""
    return next((name for name in COLOURS if name in value), value)
