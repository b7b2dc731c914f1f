"""Host side of prefix-shared attention: which rows look at which pages together.

The rows of one decoding step are paths of a few trees, so their page tables share heads: the
prompt, then the trunk down to each fork. `make_tiles` walks that trie of page numbers and cuts it
into tiles of at most `tile_pages` pages. A shared tile is read once for all its rows
(one dense product), an own tile belongs to one row. Every page of every row is in exactly one
tile of that row, so merging a row's tiles by log-sum-exp gives exact attention; the number of
tiles grows with the unique pages, not with rows times length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spark_jax.ops.tile_attention import TileLists, Tiles

TILE_TOKENS = 128
SHARED_ROWS = 8  # most rows of a shared tile; more rows take several tiles over the same pages
# A shared tile costs about as much as three own ones (XLA on a CPU; it computes SHARED_ROWS places
# whatever is in them), so a run of pages is shared where each of its tiles saves so many.
WORTH_TILES = 3
WORTH_NATIVE = 1  # ops/cpu_kernels.py: what counts is how often tokens are read


def make_tiles(
    pages: Sequence[Sequence[int]],
    rows: int,
    table_pages: int,
    slots: int,
    share: bool = True,
    worth: int = WORTH_TILES,
) -> TileLists:
    """Cuts the pages of a batch into tiles.

    Args:
      pages: page numbers of each row, from the start of its path; at most `rows` of them.
      rows: B, rows of the padded batch.
      table_pages: most pages of a row. Shapes depend on `rows`, `table_pages` and `slots` only.
      slots: tokens of a page.
      share: False: every row reads all its pages itself.
      worth: own tiles that a shared one has to save.
    """
    tile_pages = pages_of_tile(slots)
    most_shared, most_own = _most_tiles(rows, table_pages, slots)
    own = _Builder(most_own, tile_pages, 1, rows, slots)
    shared = _Builder(most_shared, tile_pages, SHARED_ROWS, rows, slots)

    def walk(members: list[int], depth: int, begin: int) -> None:
        """`members` agree on the pages before `depth`; those from `begin` on are in no tile yet."""
        first, last = pages[members[0]], pages[members[-1]]
        if len(members) == 1:  # no need to compare its pages with themselves
            own.add(first, begin, len(first), members)
            return
        # Members are in lexicographic order: what first and last share, all share.
        most = min(len(first), len(last))
        while depth < most and first[depth] == last[depth]:
            depth += 1
        cuts = -(-(depth - begin) // tile_pages) * -(-len(members) // SHARED_ROWS)
        saved = (len(members) - 1) * (depth - begin) / tile_pages
        if cuts and saved >= worth * cuts and shared.add(first, begin, depth, members):
            begin = depth
        here: list[int] = []
        for member in members:
            if len(pages[member]) == depth:
                own.add(pages[member], begin, depth, [member])
            elif here and pages[here[0]][depth] != pages[member][depth]:
                walk(here, depth, begin)
                here = [member]
            else:
                here.append(member)
        if here:
            walk(here, depth, begin)

    if share and pages:
        walk(sorted(range(len(pages)), key=lambda b: tuple(pages[b])), 0, 0)
    else:
        for b, ids in enumerate(pages):
            own.add(ids, 0, len(ids), [b])
    return TileLists(shared.tiles(), own.tiles())


def _most_tiles(rows: int, table_pages: int, slots: int) -> tuple[int, int]:
    """Room for shared tiles and for own ones, of a batch of `rows` rows. A shared tile stands for
    about four own ones or more; if shared ones do not fit, rows read by themselves."""
    own = rows * -(-table_pages // pages_of_tile(slots))
    return -(-own // 4), own


def trimmed(lists: TileLists, rungs: Sequence[tuple[int, int]]) -> TileLists:
    """The lists with as little room as the first of `rungs` that holds their tiles: the parts of
    all room that shared tiles and own ones get, (8, 4) for an eighth and a quarter. The last rung
    is (1, 1)."""
    for rung in rungs:
        rooms = [-(-len(some.start_U) // part) for some, part in zip(lists, rung, strict=True)]
        if all(some.count <= room for some, room in zip(lists, rooms, strict=True)):
            break
    return TileLists(
        *(
            Tiles(*(x[:room] for x in some[:-1]), some.count)
            for some, room in zip(lists, rooms, strict=True)
        )
    )


def pages_of_tile(slots: int) -> int:
    """Pages of a tile for pages of `slots` tokens."""
    return max(1, TILE_TOKENS // slots)


class _Builder:
    """Fills the arrays of one `Tiles`."""

    def __init__(self, capacity: int, tile_pages: int, members: int, rows: int, slots: int):
        self.page_UW = np.zeros((capacity, tile_pages), np.int32)
        self.row_UR = np.full((capacity, members), rows, np.int32)
        self.start_U, self.tokens_U = np.zeros((2, capacity), np.int32)
        self.count, self.slots = 0, slots

    def add(self, pages: Sequence[int], begin: int, end: int, members: Sequence[int]) -> bool:
        """Tiles over pages[begin:end] for `members`; False, and nothing done, if they do not
        fit."""
        width, places = self.page_UW.shape[1], self.row_UR.shape[1]
        cuts = [
            (at, members[i : i + places])
            for i in range(0, len(members), places)
            for at in range(begin, end, width)
        ]
        if self.count + len(cuts) > len(self.start_U):
            return False
        for at, some in cuts:
            run = pages[at : min(at + width, end)]
            self.page_UW[self.count, : len(run)] = run
            self.row_UR[self.count, : len(some)] = some
            self.start_U[self.count] = at * self.slots
            self.tokens_U[self.count] = len(run) * self.slots
            self.count += 1
        return True

    def tiles(self) -> Tiles:
        return Tiles(self.page_UW, self.row_UR, self.start_U, self.tokens_U, np.int32(self.count))
