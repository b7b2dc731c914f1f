"""The shop's search: BM25 as Lucene computes it (k1 = 0.9, b = 0.4), over title, description, first
bullet point and options of each product. Lucene keeps the length of a document in one byte, and so
do we (the original runs Lucene itself, in a Java process)."""

from __future__ import annotations

import array
import collections
import heapq
import math
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import Stemmer

from spark_jax.envs.webshop.catalogue import Product

# Lucene counts in single precision.
K1, B, _ONE = np.float32(0.9), np.float32(0.4), np.float32(1)
STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with".split()
)
# Lucene's StandardTokenizer, by Unicode's word boundaries: runs of letters and digits, which some
# signs join between two letters and others between two digits; and each emoji, which counts for the
# length of a text. Tested against Lucene itself (tests/golden/lucene.json).
_MID_BOTH = ".'‘’․﹒＇．"
_MID_LETTER = ":·\u0387\u05f4‧︓﹕："
_MID_DIGIT = ",;\u037e\u0589\u060c\u060d\u066c\u07f8⁄︐︔﹐﹔，；"
_EMOJI = (  # Extended_Pictographic of Unicode 12
    "©®‼⁉™↔-↙↩↪⌚⌛⌨⎈⏏⏩-⏳⏸-⏺▪▫▶◀◻-◾☀-★☇-☒☔-⚅⚐-✅✈-✒✔✖✝✡✨✳✴❄❇❌❎❓-❕❗❣-❧➕-➗➡➰➿⤴⤵⬅-⬇⬛⬜⭐⭕〰〽㊗㊙"
    "\U0001f000-\U0001f0ff\U0001f10d-\U0001f10f\U0001f12f\U0001f16c-\U0001f171\U0001f17e\U0001f17f"
    "\U0001f18e\U0001f191-\U0001f19a\U0001f1ad-\U0001f1e5\U0001f201-\U0001f20f\U0001f21a\U0001f22f"
    "\U0001f232-\U0001f23a\U0001f23c-\U0001f23f\U0001f249-\U0001f53d\U0001f546-\U0001f64f"
    "\U0001f680-\U0001f6ff\U0001f774-\U0001f77f\U0001f7d5-\U0001f7ff\U0001f80c-\U0001f80f"
    "\U0001f848-\U0001f84f\U0001f85a-\U0001f85f\U0001f888-\U0001f88f\U0001f8ae-\U0001f8ff"
    "\U0001f90c-\U0001f93a\U0001f93c-\U0001f945\U0001f947-\U0001faff"
)
_SIGN = "぀-ゟ㐀-䶿一-鿿"  # each is a word by itself
_LETTER = r"[^\W\d_]"
_ONE_EMOJI = f"[{_EMOJI}][\ufe0f\U0001f3fb-\U0001f3ff]*"
_WORD = re.compile(
    f"{_ONE_EMOJI}(?:\u200d{_ONE_EMOJI})*"
    "|[\U0001f1e6-\U0001f1ff]{2}"  # a flag
    rf"|[{_SIGN}]|(?:[^\W{_SIGN}]"
    rf"|[{_MID_BOTH}{_MID_LETTER}](?={_LETTER})(?<={_LETTER}.)"
    rf"|[{_MID_BOTH}{_MID_DIGIT}](?=\d)(?<=\d.)"
    "|(?<=\\w)[\u0300-\u036f\u200d\ufe0f])+"
)
_MEASURE = re.compile(r"(?:[aeiou]|(?<=[^aeiou])y)[^aeiou]")  # Porter's m > 0
_POSSESSIVE = re.compile(r"['’]s$", re.IGNORECASE)


class Index:
    """Finds products by words. Postings are flat arrays, 8 bytes each: the full set has a hundred
    million of them."""

    def __init__(self, products: Sequence[Product]):
        self._stem = Stemmer.Stemmer("porter")
        # word -> numbers of the products that have it, and how often each has it
        postings = collections.defaultdict(lambda: (array.array("I"), array.array("I")))
        self._asins = [product.asin for product in products]
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
        rounded = np.array([rounded_length(length) for length in lengths], np.float32)
        mean = np.float32(sum(lengths) / len(lengths))
        self._factor = _ONE / (K1 * ((_ONE - B) + B * rounded / mean))

    def terms(self, text: str) -> list[str]:
        """Stems of a text's words, without the stop words."""
        if not text.isascii():  # "¼" and "²" are numbers to Python, and nothing to Lucene
            text = "".join(" " if unicodedata.category(c) == "No" else c for c in text)
        words = (_POSSESSIVE.sub("", word).lower() for word in _WORD.findall(text))
        return [self._stemmed(word) for word in words if word.strip("_") and word not in STOP_WORDS]

    def _stemmed(self, word: str) -> str:
        """Porter's stem as Porter's own programs and Lucene have it: other than as published, a
        word of two letters is left alone, and -bli and -logi are endings."""
        if len(word) <= 2:
            return word
        stem = self._stem.stemWord(word)
        if stem.endswith("bli") and _MEASURE.search(stem[:-3]):
            return self._stem.stemWord(f"{stem[:-1]}e")
        if stem.endswith("logi") and _MEASURE.search(stem[:-4]):
            return stem[:-1]
        return stem

    def search(self, query: str, most: int = 50) -> list[int]:
        """Numbers of the products that fit best, best first; equals by their asin."""
        scores = np.zeros(len(self._factor))
        for word, times in collections.Counter(self.terms(query)).items():
            if word not in self._postings:
                continue
            found, count = self._postings[word]
            idf = math.log(1 + (len(scores) - len(found) + 0.5) / (len(found) + 0.5))
            weight = np.float32(times) * np.float32(idf)
            saturation = _ONE + count.astype(np.float32) * self._factor[found]
            scores[found] += weight - weight / saturation
        scores = scores.astype(np.float32)
        hits = np.flatnonzero(scores)
        if len(hits) > most:
            hits = hits[scores[hits] >= np.partition(scores[hits], -most)[-most]]
        return heapq.nsmallest(most, hits.tolist(), key=lambda i: (-scores[i], self._asins[i]))


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
