"""Attention of a few new tokens per row over the row's pages. Every backend returns
(output, log-sum-exp), so that parts of a context can be attended to apart and merged."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def paged_attention(
    q_BTHC: jax.Array,
    k_PSKC: jax.Array,
    v_PSKC: jax.Array,
    table_BW: jax.Array,
    position_BT: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Plain XLA: gathers the pages of each row, then masked softmax attention in float32.

    Query (b, t) looks at cache positions 0 … position_BT[b, t], its own included: the keys of the
    new tokens must already be in their pages.

    Returns:
      out_BTHC in the dtype of q, lse_BTH float32.
    """
    B, T, H, C = q_BTHC.shape
    _, S, K, _ = k_PSKC.shape
    W = table_BW.shape[1]
    k_BXKC = k_PSKC[table_BW].reshape(B, W * S, K, C)
    v_BXKC = v_PSKC[table_BW].reshape(B, W * S, K, C)
    q_BTKGC = q_BTHC.reshape(B, T, K, H // K, C)
    logits_BKGTX = jnp.einsum(
        "btkgc,bxkc->bkgtx", q_BTKGC, k_BXKC, preferred_element_type=jnp.float32
    ) * (C**-0.5)
    visible_BTX = jnp.arange(W * S) <= position_BT[:, :, None]
    logits_BKGTX = jnp.where(visible_BTX[:, None, None], logits_BKGTX, -jnp.inf)
    max_BKGT = logits_BKGTX.max(-1)
    weight_BKGTX = jnp.exp(logits_BKGTX - max_BKGT[..., None])
    sum_BKGT = weight_BKGTX.sum(-1)
    out_BTKGC = jnp.einsum(
        "bkgtx,bxkc->btkgc",
        weight_BKGTX.astype(v_BXKC.dtype),
        v_BXKC,
        preferred_element_type=jnp.float32,
    )
    sum_BTH = sum_BKGT.transpose(0, 3, 1, 2).reshape(B, T, H)
    lse_BTH = max_BKGT.transpose(0, 3, 1, 2).reshape(B, T, H) + jnp.log(sum_BTH)
    out_BTHC = out_BTKGC.reshape(B, T, H, C) / sum_BTH[..., None]
    return out_BTHC.astype(q_BTHC.dtype), lse_BTH


def write_pages(pages_PSKC: jax.Array, new_NKC: jax.Array, slot_N: jax.Array) -> jax.Array:
    """Writes one token each at flat slot numbers (page * S + slot); in place when donated."""
    P, S, K, C = pages_PSKC.shape
    flat = pages_PSKC.reshape(P * S, K, C).at[slot_N].set(new_NKC.astype(pages_PSKC.dtype))
    return flat.reshape(P, S, K, C)
