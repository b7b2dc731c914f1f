"""Where the leaves go that a tree has left when all of its paths have ended (not in the paper).

The next leaf teaches most where its outcome is open: below a node whose leaves both succeed and
fail, or of which there are too few to tell. All of the leftover is shared out at once, so that its
paths run side by side; the tree is full afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from spark_jax.rollout.budget import Indices


class Place(NamedTuple):
    """A node that may have more children: the prompt (a child is a new root), or a spark point."""

    who: Indices
    successes: int  # leaves below it that succeeded
    leaves: int  # leaves below it


def openness(place: Place) -> Fraction:
    """p (1 - p), the variance of the next leaf's success, with p = (1 + successes) / (2 + leaves),
    the mean of the posterior from a uniform prior: 1/4 where half of the leaves succeed, less the
    more of them say the same."""
    p = Fraction(1 + place.successes, 2 + place.leaves)
    return p * (1 - p)


def share_out(places: Sequence[Place], left: int) -> dict[Indices, int]:
    """How many of `left` leaves each place gets; those that get none are left out.

    In proportion to `openness`, by d'Hondt's rule: one after the other to the place with the
    greatest openness / (1 + what it was given so far). Of equals the deeper one comes first, whose
    paths are shorter, then the one that is first in the tree: a new root only where no spark point
    is as open.
    """
    given: dict[Indices, int] = {}

    def claim(place: Place) -> tuple:
        first = tuple(-i for i in place.who)
        return openness(place) / (1 + given.get(place.who, 0)), len(place.who), first

    for _ in range(left):
        who = max(places, key=claim).who
        given[who] = given.get(who, 0) + 1
    return given
