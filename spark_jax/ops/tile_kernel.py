"""Tiles of decoding attention as a Pallas kernel for GPUs (Triton). See ops/tile_attention.py.

One program looks at one tile with one key head: it fetches the tile's pages by their numbers,
multiplies them with the queries of the tile's rows, and writes the part's softmax sums and values
for XLA to merge. Keys and values are read from memory once a tile, however many rows look at it.

Tested in Pallas's interpreter; not yet run on a GPU.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

_LOW = -1e30
LEAST_QUERIES = 16  # of a matrix product on the tensor cores
WARPS = 4


def tile_parts_pallas(
    q_UKMC: jax.Array,
    seen_UM: jax.Array,
    page_UW: jax.Array,
    k_PSKC: jax.Array,
    v_PSKC: jax.Array,
    *,
    count: jax.Array,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Softmax parts of every tile: (max_UKM, sum_UKM, out_UKMC), float32.

    Args:
      q_UKMC: queries of the rows of each tile, scaled.
      seen_UM: tokens of the tile, from its first one on, that the query may see.
      page_UW: pages of each tile.
      count: tiles in use; what is returned for the others means nothing.

    The channels C, and the tokens of a tile, have to be powers of two.
    """
    U, K, M, C = q_UKMC.shape
    slots = k_PSKC.shape[1]
    tokens = page_UW.shape[1] * slots
    for name, size in (("channels of a head", C), ("tokens of a tile", tokens)):
        if size & (size - 1):
            raise ValueError(f"{size} {name}: the kernel needs a power of two")
    queries = max(LEAST_QUERIES, 1 << (M - 1).bit_length())
    q_UKMC = jnp.pad(q_UKMC, ((0, 0), (0, 0), (0, queries - M), (0, 0)))
    seen_UM = jnp.pad(seen_UM, ((0, 0), (0, queries - M)))
    whole = pl.BlockSpec(memory_space=pl.ANY)
    scalars = pl.BlockSpec((None, None, queries), lambda u, k: (u, k, 0))
    out = pl.pallas_call(
        functools.partial(_kernel, slots=slots, tokens=tokens),
        grid=(U, K),
        in_specs=[
            whole,
            whole,
            pl.BlockSpec((None, queries), lambda u, k: (u, 0)),
            pl.BlockSpec((None, None, queries, C), lambda u, k: (u, k, 0, 0)),
            whole,
            whole,
        ],
        out_specs=[
            scalars,
            scalars,
            pl.BlockSpec((None, None, queries, C), lambda u, k: (u, k, 0, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((U, K, queries), jnp.float32),
            jax.ShapeDtypeStruct((U, K, queries), jnp.float32),
            jax.ShapeDtypeStruct((U, K, queries, C), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=WARPS),
        interpret=interpret,
    )(jnp.reshape(count, (1,)), page_UW, seen_UM, q_UKMC, k_PSKC, v_PSKC)
    return tuple(x[:, :, :M] for x in out)


def _kernel(count, pages, seen, q, k, v, max_out, sum_out, out, *, slots: int, tokens: int):
    tile, head = pl.program_id(0), pl.program_id(1)

    @pl.when(tile < count[0])
    def _():
        token_X = jnp.arange(tokens)
        page_X = pages[tile, token_X // slots]
        k_XC = k[page_X, token_X % slots, head, :]
        scores = plgpu.dot(q[...], k_XC, trans_b=True).astype(jnp.float32)
        visible = token_X[None, :] < seen[...][:, None]
        scores = jnp.where(visible, scores, _LOW)
        max_M = scores.max(axis=1)
        weights = jnp.where(visible, jnp.exp(scores - max_M[:, None]), 0.0)
        v_XC = v[page_X, token_X % slots, head, :]
        max_out[...] = max_M
        sum_out[...] = weights.sum(axis=1)
        out[...] = plgpu.dot(weights.astype(v_XC.dtype), v_XC).astype(jnp.float32)
