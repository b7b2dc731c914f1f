"""Attention of a few new tokens per row over the row's pages. Every backend returns
(output, log-sum-exp), so that parts of a context can be attended to apart and merged.

Pages are k_PKSC and v_PKSC, so that one head's part of a page is one piece of memory. The C++
kernels have k_PKCS, those for GPUs k_PSKC and v_PSKC (`page_shapes`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from spark_jax.ops.backend import GPU_KERNELS, Backend
from spark_jax.ops.bits import kept_as, numbers, put
from spark_jax.ops.cpu_attention import paged_attention_native, write_pages_native
from spark_jax.ops.gpu_kernels import paged_attention_pallas

BLOCK_TOKENS = 128  # cache positions looked at in one go


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
        k_BKXC, v_BKXC = gathered(k_pages, ids), gathered(v_pages, ids)
        scores = jnp.einsum("bkmc,bkxc->bkmx", q_BKMC, k_BKXC, preferred_element_type=jnp.float32)
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
    if backend in GPU_KERNELS:
        return ((pages, slots, kv_heads, channels),) * 2
    by_head = pages, kv_heads, slots, channels
    return (pages, kv_heads, channels, slots) if backend == "native" else by_head, by_head


def slots_of(v_pages: jax.Array, backend: Backend) -> int:
    """Tokens of a page."""
    return v_pages.shape[1 if backend in GPU_KERNELS else 2]


def gathered(pages_PKSC: jax.Array, ids_NW: jax.Array) -> jax.Array:
    """Keys or values of runs of W pages, [N, K, X, C] with X = W S. `ids_NW` have to exist."""
    x_NWKSC = pages_PKSC.at[ids_NW].get(mode="promise_in_bounds")
    N, W, K, S, C = x_NWKSC.shape
    return numbers(x_NWKSC.swapaxes(1, 2).reshape(N, K, W * S, C))


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
    page_N, place_N = jnp.divmod(slot_N, slots_of(pages[1], backend))
    where = np.s_[page_N, place_N] if backend in GPU_KERNELS else np.s_[page_N, :, place_N]
    return put(pages[0], where, k_NKC), put(pages[1], where, v_NKC)
