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
import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from spark_jax.cache.kv import Kv, copy_pages, init_copies, init_kv
from spark_jax.cache.memory import give_back
from spark_jax.cache.pool import PagePool, Pages
from spark_jax.cache.tiles import (
    WORTH_NATIVE,
    WORTH_TILES,
    Held,
    make_tiles,
    most_tiles,
    pages_of_tile,
)
from spark_jax.models.config import ModelConfig
from spark_jax.models.layouts import turned
from spark_jax.models.packed import packed
from spark_jax.ops.tile_attention import Stale, TileCopies, TileLists
from spark_jax.rollout.engine_shape import GROUP, EngineShape, bucket, share_room
from spark_jax.rollout.programs import DecodeRows, Weights, decode_chunk, prefill
from spark_jax.types import UserError


@dataclasses.dataclass(eq=False)
class Row:
    """One response to sample at the end of a path."""

    tokens: list[int]  # the path so far; grows by the sampled tokens
    key: np.ndarray  # uint32 [2], identity of the response (rollout/identity.py)
    budget: int  # most tokens of the response; 0 = only bring the path into the cache
    pages: Pages = dataclasses.field(default_factory=Pages)
    keep_prefix: bool = False  # leave a second holder of the path, as it was before the response
    prefix: Pages | None = None
    response: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    stop: int = 0  # state of the stop automaton

    @property
    def to_prefill(self) -> int:
        """Tokens to bring into the cache before the last one can be fed."""
        return len(self.tokens) - 1 - self.pages.length

    @property
    def longest(self) -> int:
        """Cached tokens when the response has its full length."""
        return len(self.tokens) - len(self.response) + self.budget


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
    out: tuple[jax.Array, jax.Array, jax.Array]  # tokens, log-probabilities, stop states


class Engine:
    """Owns the cache and the queue. `round()` is one look of the host."""

    def __init__(
        self,
        config: ModelConfig,
        shape: EngineShape,
        stop_table: np.ndarray,
        end_of_turn: int,
        dtype="float32",
        place: Sharding | None = None,
    ):
        """`dtype`: of the cache, and of the weights that products read. `place`: where the pages of
        the cache lie (as `page_shapes` has them); None is jax's own choice."""
        self.config = dataclasses.replace(config, dtype=dtype)
        self.dtype, self.shape, self.end_of_turn = dtype, shape, end_of_turn
        if shape.backend == "native" and dtype == "bfloat16":
            dtype = "uint16"  # ops/bits.py
        self.pool = PagePool(shape.pages, shape.slots)
        self._empty_cache = functools.partial(
            init_kv, config, shape.pages, shape.slots, dtype, backend=shape.backend
        )
        self._place = place
        self._spread = place if isinstance(place, NamedSharding) else None
        # There from the first use until `rest`: the cache, and copies of weights. Copies of the
        # tiles that decoding looks at are there while paths are alive.
        self._kv: Kv | None = None
        self._weights: Weights | None = None
        self._copies: tuple[TileCopies, ...] | None = None
        self._held: tuple[Held, Held] = ()
        if self._spread is not None:
            place = NamedSharding(self._spread.mesh, PartitionSpec())
        self.stop_table = jax.device_put(jnp.asarray(stop_table), place)
        self.accept = stop_table.shape[0] - 1
        self.temperature = np.float32(1.0)
        self.params = None
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
    def kv(self) -> Kv:
        """The cache on the device."""
        if self._kv is None:
            place = self._place
            if place is None and self.params is not None:
                weight = jax.tree.leaves(self.params)[0]
                # As results of programs are then: no second compilation.
                if weight.committed and len(weight.devices()) == 1:
                    place = SingleDeviceSharding(*weight.devices())
            self._kv = self._empty_cache(sharding=place)
        return self._kv

    @kv.setter
    def kv(self, kv: Kv) -> None:
        self._kv = kv

    def use(self, params, temperature: float) -> None:
        """Samples from `params` at `temperature` from now on. Cached keys and values would be
        stale after a change of weights, so no path may be alive."""
        if self.waiting or self.running or self.pool.used_pages:
            raise ValueError("weights can change only when no path holds pages")
        self.rest()
        self.params, self.temperature = params, np.float32(temperature)
        self.stats = EngineStats()

    def compile_all(self) -> int:
        """Runs every program once on empty rows; returns their number."""
        count = 0
        for G in self.shape.group_ladder:
            self._prefill([], G)
            count += 1
        for B in self.shape.row_ladder:
            self._decode([], B, self._tiles([], B))
            count += 1
        self._copy([(0, 0)])
        jax.block_until_ready(self.kv)
        self.rest()
        return count + 1

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def device_bytes(self) -> dict[str, int]:
        """What it takes of each of its devices: the cache and, with plain XLA, copies of tiles."""
        shape, config = self.shape, self.config
        heads = config.kv_heads
        if self._spread is not None:
            heads = self._spread.shard_shape((1, 1, heads, 1))[2]
        token = 2 * config.layers * heads * config.head_dim * jnp.dtype(self.dtype).itemsize
        out = {"cache": token * shape.pages * shape.slots}
        if shape.backend == "xla":
            tiles = sum(most_tiles(shape.rows, shape.table_pages, shape.slots))
            out["copies of tiles"] = token * tiles * pages_of_tile(shape.slots) * shape.slots
        return out

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
        if not self.pool.used_pages:  # as at first: where tiles lie decides how sums are rounded
            self._copies = None
            give_back()

    def rest(self) -> None:
        """The rollout is over: cache and copies are given up, so that a learner has their memory
        (the cache only if no path is alive)."""
        self._copies = self._weights = None
        if not self.pool.used_pages:
            self._kv = None
        give_back()

    def round(self) -> list[Row]:
        """Admits, prefills and decodes one chunk; returns the rows whose response is complete."""
        self.begin()
        return self.complete()

    def begin(self) -> None:
        """The first half of a round: hands the device its work, and does not wait for it."""
        start, device_before = time.perf_counter(), self.stats.device_seconds
        self._admit()
        self._prefill_round()
        self._ready = [row for row in self.running if row.to_prefill == 0]
        for row in self._ready:
            if row.keep_prefix and row.prefix is None:
                row.prefix = self.fork(row.pages)
        self._chunk = self._begin_chunk([row for row in self._ready if row.budget])
        on_device = self.stats.device_seconds - device_before
        self.stats.host_seconds += time.perf_counter() - start - on_device

    def complete(self) -> list[Row]:
        """The other half: waits for the device, and returns the rows that are complete."""
        start, device_before = time.perf_counter(), self.stats.device_seconds
        if self._chunk is not None:
            self._take(self._chunk)
        finished = [row for row in self._ready if self._is_finished(row)]
        self._ready, self._chunk = [], None
        for row in finished:
            self.running.remove(row)
            self._parked[id(row.pages)] = row.pages
        self.stats.most_pages = max(self.stats.most_pages, self.pool.used_pages)
        on_device = self.stats.device_seconds - device_before
        self.stats.host_seconds += time.perf_counter() - start - on_device
        return finished

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

    # --- device calls -----------------------------------------------------------------------

    def _laid_out(self) -> Weights:
        if self._weights is None:
            if self.shape.backend == "native":
                self._weights = Weights(packed=packed(self.params, self.dtype))
            else:
                params = self.params
                wanted = jnp.dtype(self.dtype)
                if any(x.dtype != wanted for x in jax.tree.leaves(params)):
                    params = _narrowed(params, dtype=self.dtype)
                on_cpu = next(iter(jax.tree.leaves(params)[0].devices())).platform == "cpu"
                self._weights = Weights(params, turned(params) if on_cpu else None)
        return self._weights

    def _grow(self, rows: Sequence[Row], lengths: Sequence[int]) -> None:
        copies = []
        for row, length in zip(rows, lengths, strict=True):
            copies += self.pool.grow(row.pages, length)
        for i in range(0, len(copies), self.shape.rows):
            self._copy(copies[i : i + self.shape.rows])

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        padded = np.zeros((2, self.shape.rows), np.int32)
        padded[:, : len(copies)] = np.array(copies, np.int32).T
        self.kv = copy_pages(self.kv, padded[0], padded[1], self._spread)

    def _table(self, rows: Sequence[Row], B: int) -> np.ndarray:
        table_BW = np.zeros((B, self.shape.table_pages), np.int32)
        for b, row in enumerate(rows):
            table_BW[b, : len(row.pages.ids)] = row.pages.ids
        return table_BW

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
        began = time.perf_counter()
        while groups:  # several programs that are full rather than a large one with padding
            ladder = self.shape.group_ladder
            G = max((g for g in ladder if g <= len(groups)), default=ladder[0])
            self._prefill(groups[:G], G)
            self.stats.prefill_slots += G * GROUP
            groups = groups[G:]
        self.stats.device_seconds += time.perf_counter() - began
        self.stats.prefill_tokens += sum(counts)
        for row, n in zip(rows, counts, strict=True):
            self.pool.wrote(row.pages, n)

    def _prefill(self, groups: Sequence[tuple[Row, int, int]], G: int) -> None:
        """`groups`: (row, position of the first token, tokens). A group may look at an earlier one
        of its row: all keys are written before any are read."""
        token_GT = np.zeros((G, GROUP), np.int32)
        start_G, count_G = np.zeros((2, G), np.int32)
        for g, (row, start, n) in enumerate(groups):
            start_G[g], count_G[g] = start, n
            token_GT[g, :n] = row.tokens[start : start + n]
        self.kv = prefill(
            self._laid_out(),
            self.kv,
            token_GT,
            start_G,
            count_G,
            self._table([row for row, _, _ in groups], G),
            config=self.config,
            backend=self.shape.backend,
            place=self._spread,
        )

    def _begin_chunk(self, rows: Sequence[Row]) -> _Chunk | None:
        if not rows:
            return None
        chunk = self.shape.chunk
        self._grow(rows, [min(row.pages.length + chunk, row.longest) for row in rows])
        B = bucket(self.shape.row_ladder, len(rows))
        tiles = self._tiles(rows, B)
        began = time.perf_counter()
        out = self._decode(rows, B, tiles)
        self.stats.device_seconds += time.perf_counter() - began
        return _Chunk(rows, B, tiles, out)

    def _take(self, chunk: _Chunk) -> None:
        """Waits for a chunk and adds what it sampled to its rows."""
        rows, B, tiles, out = chunk
        began = time.perf_counter()
        token_BX, logprob_BX, stop_B = jax.device_get(out)
        self.stats.device_seconds += time.perf_counter() - began
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

    def _tiles(self, rows: Sequence[Row], B: int) -> TileLists:
        shape = self.shape
        pages = [row.pages.ids for row in rows]
        worth = WORTH_NATIVE if shape.backend == "native" else WORTH_TILES
        return make_tiles(pages, B, shape.table_pages, shape.slots, shape.share_prefix, worth)

    def _decode(self, rows: Sequence[Row], B: int, tiles: TileLists):
        token_B, position_B, left_B, stop_B = np.zeros((4, B), np.int32)
        key_B2 = np.zeros((B, 2), np.uint32)
        for b, row in enumerate(rows):
            token_B[b], position_B[b] = row.tokens[-1], row.pages.length
            left_B[b], stop_B[b] = row.budget - len(row.response), row.stop
            key_B2[b] = row.key
        stale = None
        if self.shape.backend == "xla":
            tiles, stale = self._settle(tiles)
        self.kv, self._copies, out = decode_chunk(
            self._laid_out(),
            self.kv,
            self._copies,
            DecodeRows(
                token_B, position_B, left_B, stop_B, key_B2, self._table(rows, B), tiles, stale
            ),
            self.stop_table,
            self.temperature,
            config=self.config,
            chunk=self.shape.chunk,
            end_of_turn=self.end_of_turn,
            backend=self.shape.backend,
            place=self._spread,
        )
        return out

    def _settle(self, tiles: TileLists) -> tuple[TileLists, tuple[Stale, Stale]]:
        """Lays the tiles where their copies are; makes room for copies if there is none."""
        shape = self.shape
        if self._copies is None:
            places = most_tiles(shape.rows, shape.table_pages, shape.slots)
            self._held = tuple(map(Held, places))
            self._copies = init_copies(self.kv, *places, pages_of_tile(shape.slots))
        settled = [
            held.settle(part, self.pool.stamps, shape.slots)
            for held, part in zip(self._held, tiles, strict=True)
        ]
        parts, stale = zip(*settled, strict=True)
        return TileLists(*parts), stale


@functools.partial(jax.jit, static_argnames="dtype")
def _narrowed(params, dtype: str):
    """The matrices in the type that products read; scales and biases stay as they are."""
    return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, params)
