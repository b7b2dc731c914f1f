"""Attention over pages as Pallas kernels for GPUs (Triton): decoding tiles, and prefill.

Both fetch keys and values by page number and keep the softmax in float32. In decoding one program
looks at one tile (ops/tile_attention.py) with one key head and writes the part's sums and values
for XLA to merge: a tile is read once, however many rows look at it. In prefill one program takes
some tokens of a row and runs over the row's pages.

Tested in Pallas's interpreter; not yet run on a GPU.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

LOW = -1e30  # below any score, and finite: exp(LOW - LOW) is a number
LEAST_QUERIES = 16  # of a matrix product on the tensor cores
LEAST_CHANNELS = 16  # of a head, likewise
MOST_QUERIES = 64  # of a program of the prefill
BLOCK_TOKENS = 128  # cache positions that the prefill looks at in one go
WARPS = 4
# Tiles of keys and values that are on their way at a time. One of 128 tokens and 128 channels takes
# 32 KB in bfloat16; an A100 has 163 KB for keys and values together.
STAGES = {2: 2, 4: 1}  # by bytes of a number


def _triton():
    # JAX has announced its end: where it is gone everything but these kernels has to run.
    from jax.experimental.pallas import triton

    return triton


def _dot(a, b, trans_b: bool = False):
    """As precise as the inputs: float32 would be cut to TF32 (10 bits) otherwise. Triton does not
    look at it where inputs are bfloat16: those go to the tensor cores as they are."""
    return _triton().dot(a, b, trans_b=trans_b, precision=jax.lax.Precision.HIGHEST)


def _parameters(dtype):
    return _triton().CompilerParams(num_warps=WARPS, num_stages=STAGES[dtype.itemsize])


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
    _check_sizes(C, tokens)
    queries = max(LEAST_QUERIES, _power_of_two(M))
    q_UKMC = jnp.pad(q_UKMC, ((0, 0), (0, 0), (0, queries - M), (0, 0)))
    seen_UM = jnp.pad(seen_UM, ((0, 0), (0, queries - M)))
    whole = pl.BlockSpec(memory_space=pl.ANY)
    scalars = pl.BlockSpec((None, None, queries), lambda u, k: (u, k, 0))
    out = pl.pallas_call(
        functools.partial(_tile_kernel, slots=slots, tokens=tokens),
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
        compiler_params=_parameters(k_PSKC.dtype),
        interpret=interpret,
    )(jnp.reshape(count, (1,)), page_UW, seen_UM, q_UKMC, k_PSKC, v_PSKC)
    return tuple(x[:, :, :M] for x in out)


def _tile_kernel(count, pages, seen, q, k, v, max_out, sum_out, out, *, slots: int, tokens: int):
    tile, head = pl.program_id(0), pl.program_id(1)

    @pl.when(tile < count[0])
    def _():
        token_X = jnp.arange(tokens)
        page_X = pages[tile, token_X // slots]
        k_XC = k[page_X, token_X % slots, head, :]
        scores = _dot(q[...], k_XC, trans_b=True).astype(jnp.float32)
        visible = token_X[None, :] < seen[...][:, None]
        scores = jnp.where(visible, scores, LOW)
        max_M = scores.max(axis=1)
        weights = jnp.where(visible, jnp.exp(scores - max_M[:, None]), 0.0)
        v_XC = v[page_X, token_X % slots, head, :]
        max_out[...] = max_M
        sum_out[...] = weights.sum(axis=1)
        out[...] = _dot(weights.astype(v_XC.dtype), v_XC).astype(jnp.float32)


def paged_attention_pallas(
    q_BTHC: jax.Array,
    k_PSKC: jax.Array,
    v_PSKC: jax.Array,
    table_BW: jax.Array,
    position_BT: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """The same as `ops.paged_attention.paged_attention`: (out_BTHC, lse_BTH)."""
    B, T, H, C = q_BTHC.shape
    slots, K = k_PSKC.shape[1:3]
    block = max(BLOCK_TOKENS, slots)
    _check_sizes(C, slots)  # and with it the block
    G = H // K
    group = _power_of_two(G)  # queries of a token with one key head, padded
    tokens = min(_power_of_two(T), max(1, MOST_QUERIES // group))
    tokens = max(tokens, LEAST_QUERIES // group)
    padding = -T % tokens
    q_BTKGC = q_BTHC.reshape(B, T, K, G, C) * C**-0.5
    q_BTKGC = jnp.pad(q_BTKGC, ((0, 0), (0, padding), (0, 0), (0, group - G), (0, 0)))
    q_BKMC = q_BTKGC.transpose(0, 2, 1, 3, 4).reshape(B, K, (T + padding) * group, C)
    position_BT = jnp.pad(position_BT, ((0, 0), (0, padding)), constant_values=-1)
    position_BM = jnp.repeat(position_BT, group, axis=1)
    table_BW = jnp.pad(table_BW, ((0, 0), (0, -table_BW.shape[1] % (block // slots))))
    whole, M = pl.BlockSpec(memory_space=pl.ANY), tokens * group
    out_BKMC, lse_BKM = pl.pallas_call(
        functools.partial(_prefill_kernel, slots=slots, block=block),
        grid=(B, (T + padding) // tokens, K),
        in_specs=[
            whole,
            pl.BlockSpec((None, M), lambda b, t, k: (b, t)),
            pl.BlockSpec((None, None, M, C), lambda b, t, k: (b, k, t, 0)),
            whole,
            whole,
        ],
        out_specs=[
            pl.BlockSpec((None, None, M, C), lambda b, t, k: (b, k, t, 0)),
            pl.BlockSpec((None, None, M), lambda b, t, k: (b, k, t)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(q_BKMC.shape, q_BTHC.dtype),
            jax.ShapeDtypeStruct(q_BKMC.shape[:3], jnp.float32),
        ],
        compiler_params=_parameters(k_PSKC.dtype),
        interpret=interpret,
    )(table_BW, position_BM, q_BKMC, k_PSKC, v_PSKC)

    def heads_last(x):
        x = x.reshape(B, K, T + padding, group, *x.shape[3:])[:, :, :T, :G]
        return x.swapaxes(1, 2).reshape(B, T, H, *x.shape[4:])

    return heads_last(out_BKMC), heads_last(lse_BKM)


def _prefill_kernel(table, position, q, k, v, out, lse_out, *, slots: int, block: int):
    row, head = pl.program_id(0), pl.program_id(2)
    position_M, q_MC = position[...], q[...]
    M, C = q_MC.shape

    def step(i, carry):
        max_M, sum_M, out_MC = carry
        token_X = i * block + jnp.arange(block)
        page_X = table[row, token_X // slots]
        k_XC = k[page_X, token_X % slots, head, :]
        scores = _dot(q_MC, k_XC, trans_b=True).astype(jnp.float32)
        visible = token_X[None, :] <= position_M[:, None]
        scores = jnp.where(visible, scores, LOW)
        new_max = jnp.maximum(max_M, scores.max(axis=1))
        shrink = jnp.exp(max_M - new_max)
        weights = jnp.where(visible, jnp.exp(scores - new_max[:, None]), 0.0)
        v_XC = v[page_X, token_X % slots, head, :]
        part = _dot(weights.astype(v_XC.dtype), v_XC).astype(jnp.float32)
        return new_max, sum_M * shrink + weights.sum(axis=1), out_MC * shrink[:, None] + part

    nothing = jnp.full((M,), LOW), jnp.zeros((M,)), jnp.zeros((M, C))
    blocks = position_M.max() // block + 1
    max_M, sum_M, out_MC = jax.lax.fori_loop(0, blocks, step, nothing)
    sum_M = jnp.maximum(sum_M, 1e-30)  # queries of padding see nothing
    out[...] = (out_MC / sum_M[:, None]).astype(out.dtype)
    lse_out[...] = max_M + jnp.log(sum_M)


def _power_of_two(size: int) -> int:
    """The smallest one that is not smaller."""
    return 1 << (size - 1).bit_length()


def _check_sizes(channels: int, tokens: int) -> None:
    for name, size in (("channels of a head", channels), ("tokens of a page or tile", tokens)):
        if size != _power_of_two(size):
            raise ValueError(f"{size} {name}: the kernel needs a power of two")
