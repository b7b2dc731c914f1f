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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from spark_jax.types import Task, Tree

_WORD = re.compile(rb" ?[a-z]{3,}")
WORDS = 0.3  # share of the names of a warm-up dialogue that are swapped
PLAYED_WORDS = 0.1  # of those of a dialogue in RL: with more of them most trees fail as a whole
COMMON = 0.5  # words of more of the dialogues than this are grammar, not names


class Name(NamedTuple):
    """The tokens of one word, -1 for one that the vocabulary does not have. The bare one is what
    stands at the beginning of a line or in `click[red]`; a swap changes both or neither."""

    spaced: int  # " red"
    bare: int  # "red"

    @property
    def forms(self) -> tuple[bool, bool]:
        """Which tokens it has; only names of the same forms can stand for each other."""
        return self.spaced >= 0, self.bare >= 0


def name_tokens(
    trees: Sequence[Tree], token_bytes: Sequence[bytes], words: Collection[str] = ()
) -> list[Name]:
    """What may be swapped: those of `words` that are one token; without `words` all lower-case
    words or their beginnings, except those that most of the dialogues contain."""
    found: dict[str, list[int]] = {}
    for token, text in enumerate(token_bytes):
        word = text.decode("latin-1").strip()
        if word in words if words else _WORD.fullmatch(text):
            found.setdefault(word, [-1, -1])[not text.startswith(b" ")] = token
    names = [Name(*tokens) for tokens in found.values()]
    if words:
        return names
    count: collections.Counter[Name] = collections.Counter()
    for tree in trees:
        written = {t for node in tree.nodes for t in node.response_ids + node.context_ids}
        count.update(name for name in names if not written.isdisjoint(name))
    return [name for name in names if count[name] <= COMMON * len(trees)]


def free_names(trees: Sequence[Tree], names: Sequence[Name]) -> list[Name]:
    """Those `names` that no response uses before the environment does. Any other one may have to
    be said from memory, and a new word for it nobody could know."""
    known = {token: name for name in names for token in name}
    said = {
        name
        for tree in trees
        for name, by_environment in _first_uses(tree, known).items()
        if not by_environment
    }
    return [name for name in names if name not in said]


def swap_table(names: Sequence[Name], share: float, rng: random.Random) -> dict[int, int]:
    """A `share` of the names in pairs, each to be read as the other: token -> token."""
    swap: dict[int, int] = {}
    for alike in _by_forms(names).values():
        drawn = rng.sample(alike, 2 * (round(share * len(alike)) // 2))
        swap |= _exchanged(zip(drawn[::2], drawn[1::2], strict=True))
    return swap


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


def renamed(tree: Tree, names: Sequence[Name], share: float, rng: random.Random) -> Tree:
    """The dialogue with a `share` of its names swapped for other ones, each for one other. Names
    that a response uses before any observation does stay: nobody could know the new ones."""
    first = _first_uses(tree, {token: name for name in names for token in name})
    free = [name for name in names if first.get(name, True)]
    given = [name for name in free if name in first]
    alike, pairs, taken = _by_forms(free), [], set()
    for name in rng.sample(given, round(share * len(given))):
        other = rng.choice(alike[name.forms])
        if name not in taken and other not in taken:
            pairs.append((name, other))
            taken |= {name, other}
    swap = _exchanged(pairs)
    nodes = [
        dataclasses.replace(
            node,
            response_ids=[swap.get(t, t) for t in node.response_ids],
            context_ids=[swap.get(t, t) for t in node.context_ids],
        )
        for node in tree.nodes
    ]
    return dataclasses.replace(tree, nodes=nodes)


def _first_uses(tree: Tree, known: Mapping[int, Name]) -> dict[Name, bool]:
    """name -> the environment wrote it first. `known`: token -> name."""
    first: dict[Name, bool] = {}
    for node in tree.nodes:
        for tokens, by_environment in (node.response_ids, False), (node.context_ids, True):
            for token in tokens:
                if token in known:
                    first.setdefault(known[token], by_environment)
    return first


def _by_forms(names: Iterable[Name]) -> dict[tuple[bool, bool], list[Name]]:
    out: dict[tuple[bool, bool], list[Name]] = {}
    for name in names:
        out.setdefault(name.forms, []).append(name)
    return out


def _exchanged(pairs: Iterable[tuple[Name, Name]]) -> dict[int, int]:
    """Token -> token, both ways."""
    out: dict[int, int] = {}
    for one, other in pairs:
        both = [(a, b) for a, b in zip(one, other, strict=True) if a >= 0]
        out |= dict(both) | {b: a for a, b in both}
    return out
