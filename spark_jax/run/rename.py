"""Renaming: dialogues in which names are swapped for other words, everywhere alike.

A small model trained from scratch on few dialogues learns their names by heart and fails at the
first animal or colour that it has not read in a response before. In a dialogue with swapped names
only copying from the text helps. Nothing is invented: a swap is a permutation of tokens, so what
the expert did with a thing is what the new name does (`renamed`), and what the model says of the
new name is played as the old one (`swap_table`, rollout/dialogue.py).
"""

from __future__ import annotations

import collections
import dataclasses
import random
import re
from collections.abc import Callable, Collection, Sequence

from spark_jax.types import Task, Tree

_WORD = re.compile(rb" ?[a-z]{3,}")
WORDS = 0.3  # share of the names of a warm-up dialogue that are swapped
PLAYED_WORDS = 0.1  # of those of a dialogue in RL: with more of them most trees fail as a whole
COMMON = 0.5  # words of more of the dialogues than this are grammar, not names


def name_tokens(
    trees: Sequence[Tree], token_bytes: Sequence[bytes], words: Collection[str] = ()
) -> list[int]:
    """Tokens that may be swapped: those of `words` that are one token; without `words` all
    lower-case words or their beginnings, except those that most of the dialogues contain."""
    if words:
        return [i for i, text in enumerate(token_bytes) if text.decode("latin-1").strip() in words]
    count: collections.Counter[int] = collections.Counter()
    for tree in trees:
        count.update({t for node in tree.nodes for t in node.response_ids + node.context_ids})
    return [
        token
        for token, text in enumerate(token_bytes)
        if _WORD.fullmatch(text) and count[token] <= COMMON * len(trees)
    ]


def free_names(trees: Sequence[Tree], names: Sequence[int]) -> list[int]:
    """Those `names` that no response uses before the environment does. Any other one may have to
    be said from memory, and a new word for it nobody could know."""
    said = {
        token
        for tree in trees
        for token, by_environment in _first_uses(tree).items()
        if not by_environment
    }
    return [token for token in names if token not in said]


def swap_table(names: Sequence[int], share: float, rng: random.Random) -> dict[int, int]:
    """A `share` of the names in pairs, each to be read as the other."""
    drawn = rng.sample(names, 2 * (round(share * len(names)) // 2))
    pairs = list(zip(drawn[::2], drawn[1::2], strict=True))
    return dict(pairs) | {b: a for a, b in pairs}


def swapper(
    trees: Sequence[Tree],
    token_bytes: Sequence[bytes],
    share: float,
    known_names: Sequence[str] = (),
    words: Collection[str] = (),
) -> Callable[[Task, random.Random], dict[int, int]]:
    """Draws the `swap_table` of a task's dialogue, for a `share` of the dialogues; an empty one for
    the others and for the task types in `known_names`. `trees`: by which names are known.
    `words`: as in `name_tokens`."""
    names = free_names(trees, name_tokens(trees, token_bytes, words))

    def swap_for(task: Task, rng: random.Random) -> dict[int, int]:
        if task.type in known_names or rng.random() >= share:
            return {}
        return swap_table(names, PLAYED_WORDS, rng)

    return swap_for


def _first_uses(tree: Tree) -> dict[int, bool]:
    """token -> the environment wrote it first."""
    first: dict[int, bool] = {}
    for node in tree.nodes:
        for tokens, by_environment in (node.response_ids, False), (node.context_ids, True):
            for token in tokens:
                first.setdefault(token, by_environment)
    return first


def renamed(tree: Tree, names: Sequence[int], share: float, rng: random.Random) -> Tree:
    """The dialogue with a `share` of its names swapped for other ones, each for one other. Names
    that a response uses before any observation does stay: nobody could know the new ones."""
    first = _first_uses(tree)
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
