"""Nouns of a product title. WebShop asks spaCy; but titles are lists of capitalised words, nearly
all of which spaCy takes for nouns. So: every word that is no function word and no number."""

from __future__ import annotations

import functools
import re

_WORD = re.compile(r"[^\W_]+(?=['’]s\b)|(?<!['’])[^\W_]+")
NO_NOUNS = frozenset(
    """an and any at by each for from in into is it made make more most of on one only or original
    out the this to up with without you your italian pcs""".split()
)


@functools.lru_cache(maxsize=100_000)
def title_nouns(title: str) -> frozenset[str]:
    """Lower-case nouns of a title."""
    words = {word.lower() for word in _WORD.findall(title)}
    return frozenset(w for w in words if _may_be_noun(w)) - NO_NOUNS


def _may_be_noun(word: str) -> bool:
    """No number, and no lone letter but that of a T-shirt."""
    return (len(word) > 1 or word == "t") and not word.isdigit()
