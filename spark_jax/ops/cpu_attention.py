"""Attention over pages as C++ for CPUs (cpu_attention.cc). `cpu_kernels.load` has to have returned
"" for all of it. Keys and values are written in place when they are donated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Pages = tuple[jax.Array, jax.Array]  # k_PKCS, v_PKSC
Recent = tuple[jax.Array, jax.Array, jax.Array]  # k_BKCX, v_BKXC, tokens


class Heads(NamedTuple):
    """What one product makes of tokens, and what attention has to do to it first."""

    x_NF: jax.Array  # queries [H C], keys [K C] and values [K C] side by side; or queries alone
    cos: jax.Array  # [N, 1, C/2], of `rope_tables`; or empty: nothing is turned
    sin: jax.Array
    norms_2C: jax.Array  # scales of the norms of queries and keys; or empty: they have none
    norm_eps: float
    number: int  # H


def decode_heads(
    heads: Heads,
    pages: Pages,
    tiles: Sequence[Sequence[jax.Array]],
    length_B: jax.Array,
    recent: Recent,
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array]]:
    """`tile_attention` of one token a row, whose key and value become the last of `recent`.

    Returns out_BF [B, H * C], lse_BH, and the keys and values of `recent`.
    """
    k_BKCX, v_BKXC, number = recent
    rows, types = (
        {len(x) for x in (heads.x_NF, length_B, *recent[:2])},
        {k_BKCX.dtype, pages[0].dtype},
    )
    if len(rows) > 1 or len(types) > 1:
        raise ValueError(f"rows {rows} and types {types} have to be the same")
    length_B, (shared, own), number = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.int32), (length_B, tiles, number)
    )
    rest = (*pages, length_B, *shared, *own, number)
    return _call("spark_decode", heads, (k_BKCX, v_BKXC), rest)


def prefill_heads(
    heads: Heads,
    pages: Pages,
    table_BW: jax.Array,
    position_BT: jax.Array,
    slot_N: jax.Array,
) -> tuple[jax.Array, jax.Array, Pages]:
    """`paged_attention` of the N = B T tokens of rows, whose keys and values are written to the
    pages at flat slot numbers first (below 0: nowhere).

    Returns out_NF [N, H * C], lse_NH, and the pages.
    """
    if not len(heads.x_NF) == position_BT.size == slot_N.size:
        raise ValueError(
            f"{len(heads.x_NF)} tokens, {position_BT.size} positions, {slot_N.size} slots"
        )
    places = (jnp.asarray(x, jnp.int32) for x in (table_BW, position_BT, slot_N))
    return _call("spark_prefill", heads, pages, places)


def tile_attention_native(
    q_BHC: jax.Array,
    k_PKCS: jax.Array,
    v_PKSC: jax.Array,
    tiles: Sequence[Sequence[jax.Array]],
    length_B: jax.Array,
    recent: Recent,
) -> tuple[jax.Array, jax.Array]:
    """`tile_attention` over pages, of queries that are ready. XLA copies what is not donated of
    `recent`, though nothing is written."""
    out_BF, lse_BH, _ = decode_heads(_ready(q_BHC), (k_PKCS, v_PKSC), tiles, length_B, recent)
    return out_BF.reshape(q_BHC.shape).astype(q_BHC.dtype), lse_BH


def paged_attention_native(
    q_BTHC: jax.Array,
    k_PKCS: jax.Array,
    v_PKSC: jax.Array,
    table_BW: jax.Array,
    position_BT: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """`paged_attention`, of queries that are ready and tokens that are in their pages. XLA copies
    pages that are not donated, though nothing is written."""
    B, T, H, C = q_BTHC.shape
    heads, nowhere_N = _ready(q_BTHC.reshape(B * T, H, C)), jnp.full(B * T, -1)
    out_NF, lse_NH, _ = prefill_heads(heads, (k_PKCS, v_PKSC), table_BW, position_BT, nowhere_N)
    return out_NF.reshape(q_BTHC.shape).astype(q_BTHC.dtype), lse_NH.reshape(B, T, H)


def write_pages_native(
    k_PKCS: jax.Array, v_PKSC: jax.Array, k_NKC: jax.Array, v_NKC: jax.Array, slot_N: jax.Array
) -> Pages:
    """`write_pages`, of the type that the pages have."""
    pages = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k_PKCS, v_PKSC))
    call = jax.ffi.ffi_call("spark_write", pages, input_output_aliases={0: 0, 1: 1})
    return tuple(call(k_PKCS, v_PKSC, k_NKC, v_NKC, slot_N.astype(jnp.int32)))


def _ready(q_NHC: jax.Array) -> Heads:
    nothing = jnp.zeros(0, jnp.float32)
    return Heads(q_NHC.reshape(len(q_NHC), -1), nothing, nothing, nothing, 0.0, q_NHC.shape[1])


def _call(
    target: str, heads: Heads, kept: tuple[jax.Array, jax.Array], rest: Iterable[jax.Array]
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array]]:
    """`kept`: where keys and values go, [blocks, K, C, places] and [blocks, K, places, C]."""
    (_, K, C, _), (N, F), H = kept[0].shape, heads.x_NF.shape, heads.number
    known = F in (H * C, (H + 2 * K) * C) and heads.cos.size in (0, N * C // 2)
    if not known or heads.norms_2C.size not in (0, 2 * C):
        raise ValueError(
            f"{H} heads and 2 * {K} of {C} channels do not make {heads.x_NF.shape}, turned by "
            f"{heads.cos.shape} and normed by {heads.norms_2C.shape}"
        )
    operands = [x.astype(jnp.float32) for x in heads[:4]]
    at = {len(operands): 2, len(operands) + 1: 3}  # input -> output
    out = [
        jax.ShapeDtypeStruct((N, H * C), jnp.float32),
        jax.ShapeDtypeStruct((N, H), jnp.float32),
        *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in kept),
    ]
    call = jax.ffi.ffi_call(target, out, input_output_aliases=at)
    out_NF, lse_NH, *kept = call(
        *operands, *kept, *rest, heads=np.int32(H), eps=np.float32(heads.norm_eps)
    )
    return out_NF, lse_NH, tuple(kept)
