"""The device half of the sampling engine: the cache, the weights as programs want them, and calls
of the programs (rollout/programs.py). What runs when, and on which pages, is up to the engine.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from spark_jax.cache.kv import Kv, copy_pages, init_kv
from spark_jax.cache.tiles import WORTH_NATIVE, WORTH_TILES, make_tiles, trimmed
from spark_jax.models.config import ModelConfig
from spark_jax.models.layouts import Params, turned
from spark_jax.models.packed import packed
from spark_jax.models.sharding import SAMPLER_RULES, param_shardings
from spark_jax.ops.backend import GPU_KERNELS
from spark_jax.ops.tile_attention import TileLists
from spark_jax.rollout.engine_shape import GROUP, EngineShape
from spark_jax.rollout.programs import Decoded, DecodeRows, Weights, decode_chunk, prefill
from spark_jax.rollout.row import Row


class Sampler:
    """Owns what an engine has on its devices: the cache, and copies of weights. They are there from
    their first use until `rest`."""

    def __init__(
        self,
        config: ModelConfig,
        shape: EngineShape,
        stop_table: np.ndarray,
        end_of_turn: int,
        dtype: str = "float32",
        place: Sharding | None = None,
    ):
        """`dtype`: of the cache, and of the weights that products read. `place`: where the pages of
        the cache lie (as `page_shapes` has them); None is jax's own choice."""
        self.config = dataclasses.replace(config, dtype=dtype)
        self.dtype, self.shape, self.end_of_turn = dtype, shape, end_of_turn
        on_cpu = jax.default_backend() == "cpu"
        if on_cpu and dtype == "bfloat16" and shape.backend not in GPU_KERNELS:
            dtype = "uint16"  # ops/bits.py
        self._empty_cache = functools.partial(
            init_kv, config, shape.pages, shape.slots, dtype, backend=shape.backend
        )
        self._place = place
        self._spread = place if isinstance(place, NamedSharding) else None
        self._kv: Kv | None = None
        self._weights: Weights | None = None
        if self._spread is not None:
            place = NamedSharding(self._spread.mesh, PartitionSpec())
        self._stop_table = jax.device_put(jnp.asarray(stop_table), place)
        self.accept = stop_table.shape[0] - 1  # its last state: a pattern is complete
        self.params: Params | None = None
        self._temperature = np.float32(1.0)

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

    def use(self, params: Params, temperature: float) -> None:
        """Samples from `params` at `temperature` from now on."""
        self.rest(cache=True)
        self.params, self._temperature = params, np.float32(temperature)

    def rest(self, cache: bool) -> None:
        """Gives up copies of weights, and the `cache` too."""
        self._weights = None
        if cache:
            self._kv = None

    def device_bytes(self, params: Params) -> dict[str, int]:
        """What it takes of each of its devices while it samples from such `params` (arrays, or
        shapes with shardings), by name."""
        shape, config = self.shape, self.config
        heads = config.kv_heads
        if self._spread is not None:
            heads = self._spread.shard_shape((1, heads))[1]
        token = 2 * config.layers * heads * config.head_dim * jnp.dtype(self.dtype).itemsize
        taken = {"cache": token * shape.pages * shape.slots}
        if self._copies(params):
            matrices = (x for x in jax.tree.leaves(params) if x.ndim > 1)
            numbers = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in matrices)
            taken[f"weights in {self.dtype}"] = numbers * jnp.dtype(self.dtype).itemsize
        return taken

    def copy(self, copies: list[tuple[int, int]]) -> None:
        """Copies pages, at most as many as there are rows: (from, to)."""
        padded = np.zeros((2, self.shape.rows), np.int32)
        padded[:, : len(copies)] = np.array(copies, np.int32).T
        self._kv = copy_pages(self.kv, padded[0], padded[1], self._spread)

    def prefill(self, groups: Sequence[tuple[Row, int, int]], G: int) -> None:
        """Brings at most `G` groups into the cache: (row, position of the first token, tokens). A
        group may look at an earlier one of its row: all keys are written before any are read."""
        token_GT = np.zeros((G, GROUP), np.int32)
        start_G, count_G = np.zeros((2, G), np.int32)
        for g, (row, start, n) in enumerate(groups):
            start_G[g], count_G[g] = start, n
            token_GT[g, :n] = row.tokens[start : start + n]
        self._kv = prefill(
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

    def tiles(self, rows: Sequence[Row], B: int) -> TileLists:
        """The rows' pages for a decode batch of `B` rows (cache/tiles.py)."""
        shape = self.shape
        pages = [row.pages.ids for row in rows]
        worth = WORTH_NATIVE if shape.backend == "native" else WORTH_TILES
        lists = make_tiles(pages, B, shape.table_pages, shape.slots, shape.share_prefix, worth)
        return trimmed(lists, shape.tile_ladder)

    def no_tiles(self, B: int) -> list[TileLists]:
        """Empty lists for a batch of `B` rows, of every room that they may have."""
        shape = self.shape
        lists = make_tiles([], B, shape.table_pages, shape.slots)
        return [trimmed(lists, [rung]) for rung in shape.tile_ladder]

    def decode(self, rows: Sequence[Row], B: int, tiles: TileLists) -> Decoded:
        """Starts a chunk of at most `B` rows, and does not wait for it."""
        token_B, position_B, left_B, stop_B = np.zeros((4, B), np.int32)
        key_B2 = np.zeros((B, 2), np.uint32)
        for b, row in enumerate(rows):
            token_B[b], position_B[b] = row.tokens[-1], row.pages.length
            left_B[b], stop_B[b] = row.budget - len(row.response), row.stop
            key_B2[b] = row.key
        table_BW = self._table(rows, B)
        self._kv, out = decode_chunk(
            self._laid_out(),
            self.kv,
            DecodeRows(token_B, position_B, left_B, stop_B, key_B2, table_BW, tiles),
            self._stop_table,
            self._temperature,
            config=self.config,
            chunk=self.shape.chunk,
            end_of_turn=self.end_of_turn,
            backend=self.shape.backend,
            place=self._spread,
        )
        return out

    def _laid_out(self) -> Weights:
        if self._weights is None:
            if self.shape.backend == "native":
                self._weights = Weights(packed=packed(self.params, self.dtype))
            else:
                params = self.params
                if self._copies(params):
                    mesh = None if self._spread is None else self._spread.mesh
                    params = _copied(params, dtype=self.dtype, mesh=mesh)
                on_cpu = next(iter(jax.tree.leaves(params)[0].devices())).platform == "cpu"
                self._weights = Weights(params, turned(params) if on_cpu else None)
        return self._weights

    def _copies(self, params: Params) -> bool:
        """Whether it needs matrices of its own, in another type or cut in another way."""
        cut = self._spread is not None and self._spread.mesh.shape["fsdp"] > 1
        return cut or any(x.dtype != jnp.dtype(self.dtype) for x in jax.tree.leaves(params))

    def _table(self, rows: Sequence[Row], B: int) -> np.ndarray:
        table_BW = np.zeros((B, self.shape.table_pages), np.int32)
        for b, row in enumerate(rows):
            table_BW[b, : len(row.pages.ids)] = row.pages.ids
        return table_BW


@functools.partial(jax.jit, static_argnames=("dtype", "mesh"))
def _copied(params: Params, dtype: str, mesh: Mesh | None) -> Params:
    """The matrices in the type that products read (scales and biases stay as they are), and on a
    mesh cut as SAMPLER_RULES says."""
    params = jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, params)
    if mesh is None:
        return params
    return jax.lax.with_sharding_constraint(params, param_shardings(params, mesh, SAMPLER_RULES))
