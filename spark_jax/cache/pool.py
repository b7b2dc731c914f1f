"""Host-side book-keeping of the paged KV cache: which page belongs to whom.

The device only ever sees integer page tables. Pages are reference counted; a path of a tree holds
every page of its prefix once. A page with more than one holder is never written: growing a path
whose last, partly filled page is shared copies that page first (copy-on-write).

Page 0 is never handed out: padded rows of a batch write there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


class PoolFull(Exception):
    """There are not enough free pages. Nothing was changed."""


@dataclasses.dataclass
class Pages:
    """The pages of one path: `ids[i]` holds tokens i*S … i*S+S-1, `length` tokens are valid."""

    ids: list[int] = dataclasses.field(default_factory=list)
    length: int = 0
    home: int = -1  # which of several pools they are of (rollout/engines.py)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two paths have in common from the start."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # slices are compared in C
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


class PagePool:
    """A pool of `pages` pages of `slots` tokens each (page 0 is scratch)."""

    def __init__(self, pages: int, slots: int):
        if pages < 2 or slots < 1:
            raise ValueError("a page pool needs at least 2 pages of at least 1 slot")
        self.pages, self.slots = pages, slots
        self.holders = [0] * pages
        # Popped from the end: low page numbers are used first, which keeps tests readable.
        self._free = list(range(pages - 1, 0, -1))

    @property
    def free_pages(self) -> int:
        return len(self._free)

    @property
    def used_pages(self) -> int:
        return self.pages - 1 - len(self._free)

    def pages_for(self, tokens: int) -> int:
        """How many pages hold `tokens` tokens."""
        return -(-tokens // self.slots)

    def missing(self, held: Pages, length: int) -> int:
        """How many free pages `grow(held, length)` would take."""
        new = max(0, self.pages_for(length) - len(held.ids))
        return new + (1 if length > held.length and self._last_page_is_shared(held) else 0)

    def grow(self, held: Pages, length: int) -> list[tuple[int, int]]:
        """Makes room to write tokens `held.length` … `length - 1`; `held.length` is left alone.

        Returns the page copies (source, destination) that the device must do before it writes.
        Raises PoolFull, with nothing changed, if there are not enough free pages.
        """
        if length <= held.length:
            return []
        if self.missing(held, length) > len(self._free):
            raise PoolFull(
                f"{self.missing(held, length)} pages are needed and {len(self._free)} are free"
            )
        copies = []
        if self._last_page_is_shared(held):
            index = held.length // self.slots
            source, target = held.ids[index], self._take()
            copies.append((source, target))
            held.ids[index] = target
            self._drop(source)
        while len(held.ids) < self.pages_for(length):
            held.ids.append(self._take())
        return copies

    def wrote(self, held: Pages, count: int) -> None:
        """The next `count` tokens of the path are in its pages now."""
        held.length += count

    def fork(self, held: Pages) -> Pages:
        """A second holder of the same tokens. Pages past the valid tokens are not shared."""
        ids = held.ids[: self.pages_for(held.length)]
        for page in ids:
            self.holders[page] += 1
        return Pages(list(ids), held.length, held.home)

    def keep(self, held: Pages, tokens: int) -> None:
        """Gives up what `held` has beyond its first `tokens` tokens."""
        held.length = min(held.length, tokens)
        while len(held.ids) > self.pages_for(held.length):
            self._drop(held.ids.pop())

    def cut(self, held: Pages) -> None:
        """Gives up the end of `held`: the pages with as few holders as its last one. Pages that
        more hold are before them, since whoever holds a page holds all before it on the path."""
        fewest = self.holders[held.ids[-1]]
        self.keep(held, self.slots * sum(self.holders[page] > fewest for page in held.ids))

    def free(self, held: Pages) -> None:
        """Gives up all pages of `held`; it is empty afterwards."""
        for page in held.ids:
            self._drop(page)
        held.ids, held.length = [], 0
        if not self.used_pages:
            # As at first: which pages are taken next decides how sums over a path are rounded, and
            # a resumed run has to go on as an unbroken one does.
            self._free.sort(reverse=True)

    def _last_page_is_shared(self, held: Pages) -> bool:
        index = held.length // self.slots
        return index < len(held.ids) and self.holders[held.ids[index]] > 1

    def _take(self) -> int:
        page = self._free.pop()
        self.holders[page] = 1
        return page

    def _drop(self, page: int) -> None:
        self.holders[page] -= 1
        if self.holders[page] == 0:
            self._free.append(page)
