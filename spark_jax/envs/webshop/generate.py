"""The embedded shop: a few hundred products in WebShop's own file format, made from a seed.

Five categories as in WebShop. Products of a kind differ in brand, attributes, options and price, so
that a goal has to be read: the right kind with a wrong attribute earns a part only, and mostly with
a wrong option, too. But the original's rule for options is a fuzzy one, and some that this shop
sells count as the same: large and x-large, 45 and 65 watt. For 154 of the 1,251 goals another
value than the one asked for is worth as much.
"""

from __future__ import annotations

import functools
import random
import string
from typing import Any, NamedTuple

from spark_jax.envs.webshop.catalogue import Product, product_of

SEED = 0
PER_KIND = 12
COLOURS = ("black", "white", "navy blue", "dark green", "rose gold", "grey", "red", "beige")
SIZES = ("small", "medium", "large", "x-large")
BRANDS = (
    "Alvora Bexley Corvane Dunmere Elowin Farrow Gildane Hesper Ivaro Jorvik Kestrel Lumora Marlow "
    "Nordica Orbelle Perrin Quillon Ravena Solvane Tamsin Umbria Velmora Wexford Zephra"
).split()


class _Kind(NamedTuple):
    """A kind of product."""

    category: str
    levels: str
    name: str
    attributes: tuple[str, ...]
    options: dict[str, tuple[str, ...]]
    prices: tuple[int, int]


def _kinds() -> list[_Kind]:
    flavors = ("vanilla", "lemon", "cocoa", "ginger", "berry")
    scents = ("lavender", "citrus", "sandalwood", "unscented")
    packs = ("1 pack", "2 pack", "6 pack", "12 pack")
    skin = ("cruelty free", "fragrance free", "tea tree", "natural ingredients", "sensitive skin",
            "paraben free", "long lasting", "hyaluronic acid")  # fmt: skip
    tech = ("fast charging", "noise cancelling", "water resistant", "easy to install",
            "plug and play", "high speed", "heavy duty", "usb port")  # fmt: skip
    home = ("solid wood", "easy to clean", "space saving", "assembly required", "stainless steel",
            "machine washable", "non slip", "storage space")  # fmt: skip
    wear = ("machine wash", "elastic waist", "long sleeve", "quick drying", "moisture wicking",
            "rubber sole", "classic fit", "faux leather")  # fmt: skip
    food = ("gluten free", "sugar free", "non gmo", "low carb", "plant based", "dairy free",
            "high protein", "artificial colors free")  # fmt: skip
    beauty, electronics = "Beauty & Personal Care", "Electronics"
    garden, grocery = "Home & Kitchen", "Grocery & Gourmet Food"
    fashion = "Clothing, Shoes & Jewelry"
    rows: list[tuple[str, str, str, tuple[str, ...], dict[str, tuple[str, ...]], int, int]] = [
        ("beauty", f"{beauty} › Skin Care › Face › Creams", "face cream", skin,
         {"scent": scents}, 8, 45),
        ("beauty", f"{beauty} › Hair Care › Shampoo", "hair shampoo", skin,
         {"scent": scents, "size": ("8 ounce", "16 ounce")}, 6, 30),
        ("beauty", f"{beauty} › Makeup › Lips › Lipstick", "matte lipstick", skin,
         {"color": ("red", "pink", "plum", "coral")}, 5, 25),
        ("beauty", f"{beauty} › Tools › Brushes", "makeup brush set", skin,
         {"color": COLOURS[:4]}, 9, 40),
        ("beauty", f"{beauty} › Oral Care › Toothpaste", "whitening toothpaste", skin,
         {"flavor name": ("mint", "charcoal", "coconut")}, 4, 18),
        ("electronics", f"{electronics} › Headphones › Earbuds", "wireless earbuds", tech,
         {"color": COLOURS[:5]}, 20, 120),
        ("electronics", f"{electronics} › Accessories › Chargers", "phone charger", tech,
         {"color": ("black", "white"), "size": ("20 watt", "45 watt", "65 watt")}, 10, 60),
        ("electronics", f"{electronics} › Home Audio › Speakers", "bluetooth speaker", tech,
         {"color": COLOURS[2:7]}, 25, 150),
        ("electronics", f"{electronics} › Computers › Tablets › Cases", "tablet case", tech,
         {"color": COLOURS[:6]}, 12, 50),
        ("electronics", f"{electronics} › Camera › Tripods", "camera tripod", tech,
         {"size": ("50 inch", "60 inch", "72 inch")}, 18, 90),
        ("garden", f"{garden} › Furniture › Tables", "coffee table", home,
         {"color": ("walnut", "oak", "white", "black")}, 60, 320),
        ("garden", f"{garden} › Bedding › Blankets", "throw blanket", home,
         {"color": COLOURS[:5], "size": ("50x60", "60x80")}, 15, 70),
        ("garden", f"{garden} › Kitchen › Cookware", "frying pan", home,
         {"size": ("8 inch", "10 inch", "12 inch")}, 18, 95),
        ("garden", f"{garden} › Lighting › Lamps", "desk lamp", home,
         {"color": COLOURS[1:5]}, 15, 80),
        ("garden", f"{garden} › Storage › Shelves", "wall shelf", home,
         {"color": ("walnut", "oak", "white"), "size": ("2 tier", "3 tier")}, 20, 110),
        ("fashion", f"{fashion} › Men › Shirts", "men's polo shirt", wear,
         {"color": COLOURS[:4], "size": SIZES}, 14, 60),
        ("fashion", f"{fashion} › Women › Dresses", "women's summer dress", wear,
         {"color": COLOURS[2:6], "size": SIZES[:3]}, 18, 85),
        ("fashion", f"{fashion} › Shoes › Sneakers", "running sneakers", wear,
         {"color": COLOURS[:3], "size": ("8", "9", "10")}, 30, 120),
        ("fashion", f"{fashion} › Women › Handbags", "crossbody bag", wear,
         {"color": COLOURS[3:8]}, 20, 95),
        ("fashion", f"{fashion} › Men › Pants", "men's jogger pants", wear,
         {"color": COLOURS[:3], "size": SIZES}, 18, 65),
        ("grocery", f"{grocery} › Snacks › Bars", "protein bars", food,
         {"flavor name": flavors, "size": packs[1:3]}, 8, 40),
        ("grocery", f"{grocery} › Beverages › Tea", "herbal tea", food,
         {"flavor name": flavors[1:], "size": packs[:2]}, 5, 30),
        ("grocery", f"{grocery} › Breakfast › Granola", "crunchy granola", food,
         {"flavor name": flavors[:3]}, 6, 28),
        ("grocery", f"{grocery} › Baking › Mixes", "pancake mix", food,
         {"flavor name": flavors[:4]}, 5, 22),
        ("grocery", f"{grocery} › Sauces › Salsa", "tomato salsa", food,
         {"size": packs[:3]}, 4, 24),
    ]  # fmt: skip
    return [_Kind(*row[:5], row[5:]) for row in rows]


@functools.cache
def generated_catalogue(seed: int = SEED) -> tuple[Product, ...]:
    """The embedded products; always the same ones for a seed."""
    return tuple(product_of(raw, known) for raw, known in generated_files(seed))


def generated_files(seed: int = SEED) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Per product its entries in the product file and in the attribute file."""
    rng = random.Random(f"webshop {seed}")
    asins: set[str] = set()
    return [
        _product(kind, brand, rng, asins)
        for kind in _kinds()
        for brand in rng.sample(BRANDS, PER_KIND)
    ]


def _product(kind: _Kind, brand: str, rng: random.Random, asins: set[str]):
    asin = ""
    while not asin or asin in asins:
        asin = "B0" + "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789", k=8))
    asins.add(asin)
    attributes = rng.sample(kind.attributes, 4)
    asked = attributes[: rng.choice((1, 2, 2))]
    options = {
        name: [
            {"value": value} for value in rng.sample(values, rng.randint(2, min(4, len(values))))
        ]
        for name, values in kind.options.items()
    }
    low = rng.randint(*kind.prices) - 0.01
    pricing = f"${low:.2f}" if rng.random() < 0.8 else f"${low:.2f}${low * 1.3:.2f}"
    # Some attributes stand in the title, the others on the page of features only.
    title = string.capwords(f"{brand} {kind.name}, {', '.join(attributes[1:3])}")
    raw = {
        "asin": asin,
        "name": title,
        "full_description": f"{kind.name.capitalize()} by {brand}, {attributes[3]}.",
        "small_description": [a.capitalize() + "." for a in (attributes[0], attributes[2])],
        "category": kind.category,
        "query": kind.name,
        "product_category": kind.levels,
        "pricing": pricing,
        "customization_options": options,
    }
    known = {
        "attributes": attributes,
        "instruction": " with ".join([f"Find me {asked[0]} {kind.name}", *asked[1:]]),
        "instruction_attributes": asked,
    }
    return raw, known
