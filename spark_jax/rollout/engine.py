"""The sampling engine: many paths, one padded batch, a paged cache.

A `Row` is one piece of work: "the path so far is `tokens`; write one response of at most `budget`
tokens". Rows wait in a queue, enter the batch when there is a place and there are pages for the
whole response, are prefilled, decoded chunk by chunk, and leave. Their pages stay with the path
(parked) while its environment steps, so that only the new observation is prefilled afterwards.

When pages run short, rows wait in the order they came. If nothing runs and the first in the queue
still does not fit, parked and waiting paths lose the pages that they alone hold, last come first,
and are recomputed from their tokens later; so there is no deadlock, only work done twice
(`stats.evictions`).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from spark_jax.cache.kv import Kv
from spark_jax.cache.memory import give_back
from spark_jax.cache.pool import PagePool, Pages
from spark_jax.models.config import ModelConfig
from spark_jax.models.layouts import Params
from spark_jax.ops.tile_attention import TileLists
from spark_jax.rollout.engine_shape import GROUP, bucket, share_room
from spark_jax.rollout.programs import Decoded
from spark_jax.rollout.row import Row
from spark_jax.rollout.sampler import Sampler
from spark_jax.types import UserError


@dataclasses.dataclass
class EngineStats:
    prefill_tokens: int = 0  # prompt tokens brought into the cache
    prefill_slots: int = 0  # tokens that prefills computed, padding included
    response_tokens: int = 0  # tokens sampled
    decode_rows: int = 0  # rows x steps of the decode batches, padding and ended rows included
    read_tokens: int = 0  # cached tokens that decoding attended to, a shared one counted once
    row_tokens: int = 0  # the same if every row read its whole path itself
    evictions: int = 0
    device_seconds: float = 0.0  # in calls of the device, waiting for their results included
    host_seconds: float = 0.0  # the rest of the rounds: scheduling, page tables, bookkeeping
    most_pages: int = 0

    def __add__(self, other: EngineStats) -> EngineStats:
        """Of two engines together."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return EngineStats(*(a + b for a, b in pairs))


class _Chunk(NamedTuple):
    """Rows that the device is decoding."""

    rows: Sequence[Row]
    size: int  # B, rows of the padded batch
    tiles: TileLists
    out: Decoded


class Engine:
    """Owns the queue and the pool of pages; what lies on the device is the sampler's
    (rollout/sampler.py). `round()` is one look of the host."""

    def __init__(self, sampler: Sampler):
        self.sampler, self.shape = sampler, sampler.shape
        self.accept, self.end_of_turn = sampler.accept, sampler.end_of_turn
        self.pool = PagePool(self.shape.pages, self.shape.slots)
        self.waiting: collections.deque[Row] = collections.deque()
        self.running: list[Row] = []
        self._parked: dict[int, Pages] = {}
        self._ready: list[Row] = []  # between `begin` and `complete`
        self._chunk: _Chunk | None = None
        self.stats = EngineStats()

    # --- what callers use -------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Most rows that are decoded at a time."""
        return self.shape.rows

    @property
    def config(self) -> ModelConfig:
        """Of the model, in the sampler's type."""
        return self.sampler.config

    @property
    def kv(self) -> Kv:
        """The cache on the device."""
        return self.sampler.kv

    def use(self, params, temperature: float) -> None:
        """Samples from `params` at `temperature` from now on. Cached keys and values would be
        stale after a change of weights, so no path may be alive."""
        if self.waiting or self.running or self.pool.used_pages:
            raise ValueError("weights can change only when no path holds pages")
        self.sampler.use(params, temperature)
        give_back()
        self.stats = EngineStats()

    def compile_all(self) -> int:
        """Runs every program once on empty rows; returns their number."""
        count = 0
        for G in self.shape.group_ladder:
            self.sampler.prefill([], G)
            count += 1
        for B in self.shape.row_ladder:
            for tiles in self.sampler.no_tiles(B):
                self.sampler.decode([], B, tiles)
                count += 1
        self.sampler.copy([(0, 0)])
        jax.block_until_ready(self.kv)
        self.rest()
        return count + 1

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def device_bytes(self, params: Params) -> dict[str, int]:
        """See `Sampler`."""
        return self.sampler.device_bytes(params)

    @property
    def load(self) -> int:
        """Paths that it has: those that wait, run, or are parked."""
        return len(self.waiting) + len(self.running) + len(self._parked)

    def add(self, row: Row) -> None:
        """Queues a row. Raises UserError if it could never fit."""
        need = self.pool.pages_for(row.longest) + 2
        if need > self.shape.pages - 1:
            raise UserError(
                f"a path of {row.longest} tokens needs {need} cache pages and the pool has "
                f"{self.shape.pages - 1}: raise rollout.pages or lower rollout.path_tokens"
            )
        self._parked.pop(id(row.pages), None)
        self.waiting.append(row)

    def fork(self, pages: Pages) -> Pages:
        """A second holder of a path's pages."""
        copy = self.pool.fork(pages)
        self._parked[id(copy)] = copy
        return copy

    def keep(self, pages: Pages, tokens: int) -> None:
        """Gives up what a path that is not running holds beyond its first `tokens` tokens."""
        self.pool.keep(pages, tokens)

    def release(self, pages: Pages) -> None:
        """The path is over: its pages are given up."""
        self._parked.pop(id(pages), None)
        self.pool.free(pages)

    def rest(self) -> None:
        """The rollout is over: the cache and copies of weights are given up, so that a learner has
        their memory (the cache only if no path is alive)."""
        self.sampler.rest(cache=not self.pool.used_pages)
        give_back()

    def round(self) -> list[Row]:
        """Admits, prefills and decodes one chunk; returns the rows whose response is complete."""
        self.begin()
        return self.complete()

    def begin(self) -> None:
        """The first half of a round: hands the device its work, and does not wait for it."""
        with self._on_host():
            self._admit()
            self._prefill_round()
            self._ready = [row for row in self.running if row.to_prefill == 0]
            for row in self._ready:
                if row.keep_prefix and row.prefix is None:
                    row.prefix = self.fork(row.pages)
            self._chunk = self._begin_chunk([row for row in self._ready if row.budget])

    def complete(self) -> list[Row]:
        """The other half: waits for the device, and returns the rows that are complete."""
        with self._on_host():
            if self._chunk is not None:
                self._take(self._chunk)
            finished = [row for row in self._ready if self._is_finished(row)]
            self._ready, self._chunk = [], None
            for row in finished:
                self.running.remove(row)
                self._parked[id(row.pages)] = row.pages
            self.stats.most_pages = max(self.stats.most_pages, self.pool.used_pages)
        return finished

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.stats.device_seconds += time.perf_counter() - began

    @contextlib.contextmanager
    def _on_host(self) -> Iterator[None]:
        """Counts what is not inside `_on_device`."""
        began, device_before = time.perf_counter(), self.stats.device_seconds
        yield
        on_device = self.stats.device_seconds - device_before
        self.stats.host_seconds += time.perf_counter() - began - on_device

    # --- scheduling -------------------------------------------------------------------------

    def _need(self, row: Row) -> int:
        """Free pages that `row` may still take before its response is complete."""
        spare = 1 if row.keep_prefix and row.prefix is None else 0
        return self.pool.missing(row.pages, row.longest) + spare

    def _admit(self) -> None:
        reserved = sum(self._need(row) for row in self.running)
        while self.waiting and len(self.running) < self.shape.rows:
            need = self._need(self.waiting[0])
            if reserved + need > self.pool.free_pages:
                if self.running or not self._evict():
                    return
                continue
            reserved += need
            self.running.append(self.waiting.popleft())

    def _evict(self) -> bool:
        """Takes pages of one path that is not running; False if nobody holds any.

        Of the path that came last among those with pages of their own, those pages. What it shares
        it keeps: that costs no page, and to compute it again would. If every page is shared, those
        that fewest hold are the next to become somebody's own.
        """
        head = self.waiting[0].pages
        holders = list(self._parked.values()) + [row.pages for row in list(self.waiting)[1:]]
        # What the head holds too does not come free by it; where the last page is such a one, all
        # pages are (see `PagePool.cut`).
        kept = set(head.ids)
        others = [pages for pages in holders[::-1] if pages.ids and pages.ids[-1] not in kept]
        if others:
            self.pool.cut(min(others, key=lambda pages: self.pool.holders[pages.ids[-1]]))
        elif head.ids:  # last, as a rule never: all pages in use are its own
            self.pool.free(head)
        else:
            return False
        self.stats.evictions += 1
        return True

    def _is_finished(self, row: Row) -> bool:
        return (
            len(row.response) >= row.budget
            or row.stop == self.accept
            or row.response[-1:] == [self.end_of_turn]
        )

    # --- work for the device ----------------------------------------------------------------

    def _grow(self, rows: Sequence[Row], lengths: Sequence[int]) -> None:
        copies = []
        for row, length in zip(rows, lengths, strict=True):
            copies += self.pool.grow(row.pages, length)
        for i in range(0, len(copies), self.shape.rows):
            self.sampler.copy(copies[i : i + self.shape.rows])

    def _prefill_round(self) -> None:
        """Prefills what the running rows lack, as far as one prefill goes (`share_room`)."""
        lacking = [row for row in self.running if row.to_prefill > 0]
        if not lacking:
            return
        needs = [-(-row.to_prefill // GROUP) for row in lacking]
        given = share_room(needs, self.shape.group_ladder[-1])
        rows, given = zip(*((r, n) for r, n in zip(lacking, given, strict=True) if n), strict=True)
        counts = [min(row.to_prefill, n * GROUP) for row, n in zip(rows, given, strict=True)]
        lengths = [row.pages.length + n for row, n in zip(rows, counts, strict=True)]
        self._grow(rows, lengths)
        groups = [
            (row, start, min(GROUP, length - start))
            for row, length in zip(rows, lengths, strict=True)
            for start in range(row.pages.length, length, GROUP)
        ]
        ladder = self.shape.group_ladder
        with self._on_device():
            while groups:  # several programs that are full rather than a large one with padding
                G = max((g for g in ladder if g <= len(groups)), default=ladder[0])
                self.sampler.prefill(groups[:G], G)
                self.stats.prefill_slots += G * GROUP
                groups = groups[G:]
        self.stats.prefill_tokens += sum(counts)
        for row, n in zip(rows, counts, strict=True):
            self.pool.wrote(row.pages, n)

    def _begin_chunk(self, rows: Sequence[Row]) -> _Chunk | None:
        if not rows:
            return None
        chunk = self.shape.chunk
        self._grow(rows, [min(row.pages.length + chunk, row.longest) for row in rows])
        B = bucket(self.shape.row_ladder, len(rows))
        tiles = self.sampler.tiles(rows, B)
        with self._on_device():
            out = self.sampler.decode(rows, B, tiles)
        return _Chunk(rows, B, tiles, out)

    def _take(self, chunk: _Chunk) -> None:
        """Waits for a chunk and adds what it sampled to its rows."""
        rows, B, tiles, out = chunk
        with self._on_device():
            token_BX, logprob_BX, stop_B = jax.device_get(out)
        steps_B = np.append((token_BX >= 0).sum(1), 0)  # of no row: 0
        self.stats.decode_rows += B * int(steps_B.max())
        for part in tiles:  # each as long as one of its rows goes on
            self.stats.read_tokens += int((part.tokens_U * steps_B[part.row_UR].max(1)).sum())
        for b, row in enumerate(rows):
            n = int(steps_B[b])
            self.stats.row_tokens += n * self.shape.slots * len(row.pages.ids)
            row.response += token_BX[b, :n].tolist()
            row.logprobs += logprob_BX[b, :n].tolist()
            row.tokens += token_BX[b, :n].tolist()
            self.pool.wrote(row.pages, n)
            row.stop = int(stop_B[b])
            self.stats.response_tokens += n
