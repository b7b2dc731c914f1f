"""Renaming: dialogues in which names are swapped for other words, everywhere alike.

A small model trained from scratch on few dialogues learns their names by heart and fails at the
first animal or colour that it has not read in a response before. In a dialogue with swapped names
only copying from the text helps. Nothing is invented: a swap is a permutation of tokens, so what
the expert did with a thing is what the new name does.
"""

from __future__ import annotations

import collections
import dataclasses
import random
import re
from collections.abc import Sequence

from spark_jax.types import Tree

_WORD = re.compile(rb" ?[a-z]{3,}")
COMMON = 0.5  # words of more of the dialogues than this are grammar, not names


def name_tokens(trees: Sequence[Tree], token_bytes: Sequence[bytes]) -> list[int]:
    """Tokens that may be swapped: whole lower-case words or their beginnings, except those that
    most of the dialogues contain."""
    count: collections.Counter[int] = collections.Counter()
    for tree in trees:
        count.update({t for node in tree.nodes for t in node.response_ids + node.context_ids})
    return [
        token
        for token, text in enumerate(token_bytes)
        if _WORD.fullmatch(text) and count[token] <= COMMON * len(trees)
    ]


def renamed(tree: Tree, names: Sequence[int], share: float, rng: random.Random) -> Tree:
    """The dialogue with a `share` of its names swapped for other ones, each for one other. Names
    that a response uses before any observation does stay: nobody could know the new ones."""
    first: dict[int, bool] = {}  # token -> the environment wrote it first
    for node in tree.nodes:
        for tokens, by_environment in (node.response_ids, False), (node.context_ids, True):
            for token in tokens:
                first.setdefault(token, by_environment)
    free = [token for token in names if first.get(token, True)]
    given = [token for token in free if token in first]
    swap: dict[int, int] = {}
    for token in rng.sample(given, round(share * len(given))):
        other = rng.choice(free)
        if token not in swap and other not in swap:
            swap[token], swap[other] = other, token
    nodes = [
        dataclasses.replace(
            node,
            response_ids=[swap.get(t, t) for t in node.response_ids],
            context_ids=[swap.get(t, t) for t in node.context_ids],
        )
        for node in tree.nodes
    ]
    return dataclasses.replace(tree, nodes=nodes)
