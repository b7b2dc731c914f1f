"""The shop's search: BM25 as Lucene computes it (k1 = 0.9, b = 0.4), over title, description, first
bullet point and options of each product. Lucene keeps the length of a document in one byte, and so
do we (the original runs Lucene itself, in a Java process)."""

from __future__ import annotations

import array
import collections
import heapq
import math
import re
from collections.abc import Sequence

import numpy as np
import Stemmer

from spark_jax.envs.webshop.catalogue import Product

K1, B = 0.9, 0.4
STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with".split()
)
# Runs of letters and digits; inner apostrophes and dots join letters, inner dots and commas digits
# (Unicode's word boundaries, as Lucene's StandardTokenizer has them).
_WORD = re.compile(
    r"\w+(?:['’.](?=[^\W\d_])(?<=[^\W\d_]['’.])\w+|[.,'’](?=\d)(?<=\d[.,'’])\w+"
    r"|:(?=[^\W\d_])(?<=[^\W\d_]:)\w+)*"
)
_POSSESSIVE = re.compile(r"['’]s$", re.IGNORECASE)


class Index:
    """Finds products by words. Postings are flat arrays, 8 bytes each: the full set has a hundred
    million of them."""

    def __init__(self, products: Sequence[Product]):
        self._stem = Stemmer.Stemmer("porter")
        # word -> numbers of the products that have it, and how often each has it
        postings = collections.defaultdict(lambda: (array.array("I"), array.array("I")))
        lengths = []
        for i, product in enumerate(products):
            words = self.terms(contents(product))
            lengths.append(len(words))
            for word, count in collections.Counter(words).items():
                found, counts = postings[word]
                found.append(i)
                counts.append(count)
        self._postings = {
            word: tuple(np.frombuffer(numbers, np.uint32) for numbers in pair)
            for word, pair in postings.items()
        }
        rounded = np.array([rounded_length(length) for length in lengths], np.float64)
        self._norm = K1 * (1 - B + B * rounded / (sum(lengths) / len(lengths)))

    def terms(self, text: str) -> list[str]:
        """Stems of a text's words, without the stop words."""
        words = (_POSSESSIVE.sub("", word).lower() for word in _WORD.findall(text))
        return [self._stem.stemWord(word) for word in words if word and word not in STOP_WORDS]

    def search(self, query: str, most: int = 50) -> list[int]:
        """Numbers of the products that fit best, best first; equals in the order of the shop."""
        scores = np.zeros(len(self._norm))
        for word, times in collections.Counter(self.terms(query)).items():
            if word not in self._postings:
                continue
            found, count = self._postings[word]
            idf = math.log(1 + (len(scores) - len(found) + 0.5) / (len(found) + 0.5))
            scores[found] += times * idf * count / (count + self._norm[found])
        hits = np.flatnonzero(scores)
        if len(hits) > most:  # those that may be among the best after rounding
            least = np.partition(scores[hits], -most)[-most]
            hits = hits[scores[hits] >= least - 1e-4]
        return heapq.nsmallest(most, hits.tolist(), key=lambda i: (-round(float(scores[i]), 4), i))


def contents(product: Product) -> str:
    """The text of a product that is searched."""
    first = product.bullets[0] if product.bullets else ""
    options = ", and ".join(
        f"{name}: {', '.join(values)}" for name, values in product.options.items()
    )
    return f"{product.title} {product.description} {first} {options}".lower()


def rounded_length(length: int) -> int:
    """Lucene's one-byte length (SmallFloat): exact up to 40, then four significant bits."""
    free = 24  # lengths that have a byte of their own before the coarse ones begin
    if length < free:
        return length
    value = length - free
    shift = max(0, value.bit_length() - 4)
    return free + (value >> shift << shift)
