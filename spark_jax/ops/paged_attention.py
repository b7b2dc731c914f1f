"""Attention of a few new tokens per row over the row's pages. Every backend returns
(output, log-sum-exp), so that parts of a context can be attended to apart and merged.

Pages are k_PKCS and v_PKSC: one head's part of a page is one piece of memory, in the order in
which products read it. With the kernels for GPUs they are k_PSKC and v_PSKC (`page_shapes`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from spark_jax.ops.backend import Backend
from spark_jax.ops.bits import kept_as, put
from spark_jax.ops.cpu_attention import paged_attention_native, write_pages_native
from spark_jax.ops.gpu_kernels import paged_attention_pallas

BLOCK_TOKENS = 128  # cache positions looked at in one go
BY_TOKEN = ("pallas", "pallas_interpret")  # backends that keep all heads of a token together


def gathered_attention(
    q_BTHC: jax.Array,
    k_PSKC: jax.Array,
    v_PSKC: jax.Array,
    table_BW: jax.Array,
    position_BT: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The readable reference: gathers all pages of each row, then masked softmax in float32.

    Query (b, t) looks at cache positions 0 … position_BT[b, t], its own included: the keys of the
    new tokens must already be in their pages.

    Returns:
      out_BTHC in the dtype of q, lse_BTH float32.
    """
    B, T, H, C = q_BTHC.shape
    _, S, K, _ = k_PSKC.shape
    X = table_BW.shape[1] * S
    k_BXKC = k_PSKC[table_BW].reshape(B, X, K, C)
    v_BXKC = v_PSKC[table_BW].reshape(B, X, K, C)
    q_BTKGC = q_BTHC.reshape(B, T, K, H // K, C)
    scores = jnp.einsum("btkgc,bxkc->btkgx", q_BTKGC, k_BXKC, preferred_element_type=jnp.float32)
    visible_BTX = jnp.arange(X) <= position_BT[:, :, None]
    scores = jnp.where(visible_BTX[:, :, None, None], scores * C**-0.5, -jnp.inf)
    lse_BTKG = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.exp(scores - lse_BTKG[..., None]).astype(v_BXKC.dtype)
    out = jnp.einsum("btkgx,bxkc->btkgc", weights, v_BXKC, preferred_element_type=jnp.float32)
    return out.reshape(B, T, H, C).astype(q_BTHC.dtype), lse_BTKG.reshape(B, T, H)


def paged_attention(
    q_BTHC: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    table_BW: jax.Array,
    position_BT: jax.Array,
    backend: Backend = "xla",
) -> tuple[jax.Array, jax.Array]:
    """Same result as `gathered_attention`: a running softmax over blocks of pages, which are as
    `page_shapes` says.

    The number of blocks is read from the positions on the device, so one program serves every
    length and costs what the longest row of the batch needs, not what the table could hold.
    """
    if backend == "native":
        return paged_attention_native(q_BTHC, k_pages, v_pages, table_BW, position_BT)
    if backend != "xla":
        return paged_attention_pallas(
            q_BTHC, k_pages, v_pages, table_BW, position_BT, interpret=backend == "pallas_interpret"
        )
    B, T, H, C = q_BTHC.shape
    _, K, S, _ = v_pages.shape
    G, pages = H // K, max(1, BLOCK_TOKENS // S)
    table_BW = jnp.pad(table_BW, ((0, 0), (0, -table_BW.shape[1] % pages)))
    q_BKTGC = q_BTHC.reshape(B, T, K, G, C).transpose(0, 2, 1, 3, 4) * C**-0.5
    q_BKMC = q_BKTGC.reshape(B, K, T * G, C)
    blocks = jnp.max(position_BT) // (pages * S) + 1

    def block(i, carry):
        max_BKM, sum_BKM, out_BKMC = carry
        ids = jax.lax.dynamic_slice_in_dim(table_BW, i * pages, pages, axis=1)
        k_BKCX, v_BKXC = side_by_side(k_pages[ids], v_pages[ids])
        scores = jnp.einsum("bkmc,bkcx->bkmx", q_BKMC, k_BKCX, preferred_element_type=jnp.float32)
        key_X = i * (pages * S) + jnp.arange(pages * S)
        visible = key_X <= position_BT[:, None, :, None, None]
        visible = jnp.broadcast_to(visible, (B, 1, T, G, pages * S)).reshape(B, 1, T * G, -1)
        scores = jnp.where(visible, scores, -jnp.inf)
        # Position 0 is visible to every query, so after the first block the maximum is finite.
        new_max = jnp.maximum(max_BKM, scores.max(-1))
        shrink = jnp.exp(max_BKM - new_max)
        weights = jnp.exp(scores - new_max[..., None])
        part = jnp.einsum(
            "bkmx,bkxc->bkmc",
            weights.astype(v_BKXC.dtype),
            v_BKXC,
            preferred_element_type=jnp.float32,
        )
        total = sum_BKM * shrink + weights.sum(-1)
        return new_max, total, out_BKMC * shrink[..., None] + part

    M = T * G
    start = (
        jnp.full((B, K, M), -jnp.inf),
        jnp.zeros((B, K, M), jnp.float32),
        jnp.zeros((B, K, M, C), jnp.float32),
    )
    max_BKM, sum_BKM, out_BKMC = jax.lax.fori_loop(0, blocks, block, start)

    def heads_last(x):
        return x.reshape(B, K, T, G, *x.shape[3:]).swapaxes(1, 2).reshape(B, T, H, *x.shape[3:])

    out = heads_last(out_BKMC / sum_BKM[..., None])
    return out.astype(q_BTHC.dtype), heads_last(max_BKM + jnp.log(sum_BKM))


def page_shapes(
    pages: int, slots: int, kv_heads: int, channels: int, backend: Backend
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of a layer's pages of keys and of values."""
    if backend in BY_TOKEN:
        return ((pages, slots, kv_heads, channels),) * 2
    return (pages, kv_heads, channels, slots), (pages, kv_heads, slots, channels)


def slots_of(v_pages: jax.Array, backend: Backend) -> int:
    """Tokens of a page."""
    return v_pages.shape[1 if backend in BY_TOKEN else 2]


def side_by_side(k_NWKCS: jax.Array, v_NWKSC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values of W pages each as those of X = W S tokens: k_NKCX, v_NKXC."""
    N, W, K, S, C = v_NWKSC.shape
    k_NKCWS, v_NKWSC = k_NWKCS.transpose(0, 2, 3, 1, 4), v_NWKSC.swapaxes(1, 2)
    return k_NKCWS.reshape(N, K, C, W * S), v_NKWSC.reshape(N, K, W * S, C)


def write_pages(
    pages: tuple[jax.Array, jax.Array],
    k_NKC: jax.Array,
    v_NKC: jax.Array,
    slot_N: jax.Array,
    backend: Backend = "xla",
) -> tuple[jax.Array, jax.Array]:
    """Writes keys and values of one token each at flat slot numbers (page * S + slot); in place
    when donated."""
    if backend == "native":
        new = map(kept_as, pages, (k_NKC, v_NKC))
        return write_pages_native(*pages, *new, slot_N)
    if backend == "xla":
        k_PKCS, v_PKSC = pages
        page_N, slot_N = jnp.divmod(slot_N, v_PKSC.shape[2])
        return (
            put(k_PKCS, np.s_[page_N, :, :, slot_N], k_NKC),
            put(v_PKSC, np.s_[page_N, :, slot_N], v_NKC),
        )

    def write(pages_PSKC, new_NKC):
        P, S, K, C = pages_PSKC.shape
        return put(pages_PSKC.reshape(P * S, K, C), slot_N, new_NKC).reshape(P, S, K, C)

    return write(pages[0], k_NKC), write(pages[1], v_NKC)
