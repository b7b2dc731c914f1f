"""Attention over trees packed in depth-first order (learn/pack.py).

`end[j]` is the index one past the subtree of token j's node; token i may look at token j iff
`j <= i < end[j]`. One integer per key says it all: paths of the tree, several trees in one row,
rows that lie one after the other (offset `end` by the start of the row), and padding
(`end[j] = j + 1`: a token that sees itself and that nobody else sees).

`dense_tree_attention` is the formula, `blockwise_tree_attention` the fast twin: exact, never a
[T, T] buffer, and blocks of keys that the mask excludes cost nothing, forward and backward.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from spark_jax.ops.cpu_tree_attention import native_tree_attention

# native: C++ for CPUs (ops/cpu_tree_attention.py), on one device and in float32.
Backend = Literal["blockwise", "dense", "native"]

DEFAULT_BLOCK = 128
ROW_AXES = ("data", "fsdp")
HEAD_AXIS = "tensor"


class KeyBlocks(NamedTuple):
    """Which blocks of keys each block of queries has to visit. Computed once a batch.

    Block s of queries visits `keys_QS[s, :count_Q[s]]`, in ascending order.
    """

    end_N: jax.Array  # int32, padded to a multiple of the block
    keys_QS: jax.Array  # int32
    count_Q: jax.Array  # int32


def flatten_end(end_RT: jax.Array) -> jax.Array:
    """`end` of rows laid one after the other, [R*T]: row r starts at r*T."""
    rows, row_tokens = end_RT.shape
    start_R = jnp.arange(rows, dtype=jnp.int32) * row_tokens
    return (end_RT.astype(jnp.int32) + start_R[:, None]).reshape(-1)


def visible_NN(end_N: jax.Array) -> jax.Array:
    """The mask itself, [query, key]: j <= i < end[j]."""
    i = jnp.arange(end_N.shape[0])
    return (i[None, :] <= i[:, None]) & (i[:, None] < end_N[None, :])


def key_blocks(end_N: jax.Array, block: int = DEFAULT_BLOCK) -> KeyBlocks:
    """The compact list of visible blocks. A block of keys is visible from a later block of queries
    iff one of its subtrees reaches into it, that is if its largest `end` lies past the queries'
    first index."""
    padding = -end_N.shape[0] % block
    own = jnp.arange(end_N.shape[0], end_N.shape[0] + padding, dtype=jnp.int32) + 1
    end_N = jnp.concatenate([end_N.astype(jnp.int32), own])
    blocks = end_N.shape[0] // block
    reach_K = end_N.reshape(blocks, block).max(axis=1)
    index = jnp.arange(blocks, dtype=jnp.int32)
    seen_QK = (index[None, :] <= index[:, None]) & (reach_K[None, :] > index[:, None] * block)
    keys_QS = jnp.argsort(~seen_QK, axis=1, stable=True).astype(jnp.int32)
    return KeyBlocks(end_N, keys_QS, seen_QK.sum(axis=1).astype(jnp.int32))


def dense_tree_attention(
    q_NHC: jax.Array, k_NKC: jax.Array, v_NKC: jax.Array, end_N: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The formula: softmax(q k^T / sqrt(C)) v under the mask. Returns (out_NHC, lse_NH).

    Softmax in float32 (float64 for float64 input); query head h reads key head h // (H // K).
    """
    n, heads, channels = q_NHC.shape
    kv_heads = k_NKC.shape[1]
    dtype = jnp.promote_types(q_NHC.dtype, jnp.float32)
    q = q_NHC.reshape(n, kv_heads, heads // kv_heads, channels)
    scores = jnp.einsum("ikgc,jkc->kgij", q, k_NKC, preferred_element_type=dtype)
    scores = jnp.where(visible_NN(end_N), scores * channels**-0.5, -jnp.inf)
    lse = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.exp(scores - lse[..., None]).astype(v_NKC.dtype)
    out = jnp.einsum("kgij,jkc->ikgc", weights, v_NKC, preferred_element_type=dtype)
    return (
        out.reshape(n, heads, channels).astype(q_NHC.dtype),
        lse.reshape(heads, n).T,
    )


def blockwise_tree_attention(
    q_NHC: jax.Array, k_NKC: jax.Array, v_NKC: jax.Array, blocks: KeyBlocks
) -> tuple[jax.Array, jax.Array]:
    """As `dense_tree_attention`, visiting only the blocks of `blocks = key_blocks(end_N)`.

    Flash-style online softmax; the backward pass recomputes the weights from the log-sum-exp.
    """
    n, heads, channels = q_NHC.shape
    kv_heads = k_NKC.shape[1]
    groups = heads // kv_heads
    count = blocks.keys_QS.shape[0]
    block = blocks.end_N.shape[0] // count
    padding = ((0, count * block - n), (0, 0), (0, 0))
    # Heads lead inside a block, and the query heads that share a key head lie side by side, so
    # that every product is a plain matrix product and keys are never repeated.
    q = jnp.pad(q_NHC * channels**-0.5, padding)
    q = q.reshape(count, block, kv_heads, groups, channels).transpose(0, 2, 3, 1, 4)
    q = q.reshape(count, kv_heads, groups * block, channels)
    k = jnp.pad(k_NKC, padding).reshape(count, block, kv_heads, channels).swapaxes(1, 2)
    v = jnp.pad(v_NKC, padding).reshape(count, block, kv_heads, channels).swapaxes(1, 2)
    out, lse = _attend_blocks(q, k, v, blocks)
    out = out.reshape(count, kv_heads, groups, block, channels).transpose(0, 3, 1, 2, 4)
    lse = lse.reshape(count, kv_heads, groups, block).transpose(0, 3, 1, 2)
    return (
        out.reshape(count * block, heads, channels)[:n].astype(q_NHC.dtype),
        lse.reshape(count * block, heads)[:n],
    )


def _visible(i, j, block, groups, end_N):
    """Mask of query block i against key block j, [groups * block, block]."""
    query = i * block + jnp.arange(block, dtype=jnp.int32)
    key = j * block + jnp.arange(block, dtype=jnp.int32)
    end = jax.lax.dynamic_slice_in_dim(end_N, j * block, block)
    mask = (key[None, :] <= query[:, None]) & (query[:, None] < end[None, :])
    return jnp.tile(mask, (groups, 1))


@jax.custom_vjp
def _attend_blocks(q, k, v, blocks):
    """q [n, K, G*block, C] (scaled), k, v [n, K, block, C] -> out like q, lse [n, K, G*block]."""
    return _attend_forward(q, k, v, blocks)[0]


def _attend_forward(q, k, v, blocks):
    n, kv_heads, queries, channels = q.shape
    block = k.shape[2]
    dtype = jnp.promote_types(q.dtype, jnp.float32)

    def one_block(i):
        q_i = q[i]

        def visit(s, state):
            best, total, acc = state
            j = blocks.keys_QS[i, s]
            scores = jnp.einsum("kqc,kjc->kqj", q_i, k[j], preferred_element_type=dtype)
            seen = _visible(i, j, block, queries // block, blocks.end_N)
            scores = jnp.where(seen, scores, -jnp.inf)
            new = jnp.maximum(best, scores.max(axis=-1))
            # A query that has seen nothing yet keeps best = -inf; exp(-inf - 0) is 0.
            shift = jnp.where(new == -jnp.inf, 0.0, new)
            weights = jnp.exp(scores - shift[..., None])
            keep = jnp.exp(best - shift)
            part = jnp.einsum(
                "kqj,kjc->kqc", weights.astype(v.dtype), v[j], preferred_element_type=dtype
            )
            return new, total * keep + weights.sum(axis=-1), acc * keep[..., None] + part

        start = (
            jnp.full((kv_heads, queries), -jnp.inf, dtype),
            jnp.zeros((kv_heads, queries), dtype),
            jnp.zeros((kv_heads, queries, channels), dtype),
        )
        best, total, acc = jax.lax.fori_loop(0, blocks.count_Q[i], visit, start)
        return acc / total[..., None], best + jnp.log(total)

    out, lse = jax.lax.map(one_block, jnp.arange(n))
    return (out, lse), (q, k, v, blocks, out, lse)


def _attend_backward(saved, cotangents):
    q, k, v, blocks, out, lse = saved
    d_out, d_lse = cotangents
    n, kv_heads, queries, channels = q.shape
    block = k.shape[2]
    dtype = lse.dtype
    # d scores = weights * (d weights - delta), with the cotangent of the log-sum-exp folded in.
    delta = (d_out * out).sum(axis=-1) - d_lse
    d_out = d_out.astype(v.dtype)
    # Scores are held transposed, [keys, queries]: then no product below needs a transposed left
    # operand of the size of the scores, which is the slow case of a CPU matrix product.
    q_t = q.swapaxes(2, 3)
    d_out_t = d_out.swapaxes(2, 3)
    k_t = k.swapaxes(2, 3)

    def one_block(i, grads):
        d_q, d_k, d_v = grads

        def visit(s, state):
            d_q_t, d_k, d_v = state
            j = blocks.keys_QS[i, s]
            scores = jnp.einsum("kjc,kcq->kjq", k[j], q_t[i], preferred_element_type=dtype)
            seen = _visible(i, j, block, queries // block, blocks.end_N).T
            weights = jnp.where(seen, jnp.exp(scores - lse[i][:, None, :]), 0.0)
            d_weights = jnp.einsum("kjc,kcq->kjq", v[j], d_out_t[i], preferred_element_type=dtype)
            d_scores = (weights * (d_weights - delta[i][:, None, :])).astype(q.dtype)
            weights = weights.astype(q.dtype)
            d_v_j = jnp.einsum("kjq,kqc->kjc", weights, d_out[i], preferred_element_type=dtype)
            d_k_j = jnp.einsum("kjq,kqc->kjc", d_scores, q[i], preferred_element_type=dtype)
            d_q_t += jnp.einsum("kcj,kjq->kcq", k_t[j], d_scores, preferred_element_type=dtype)
            return d_q_t, d_k.at[j].add(d_k_j), d_v.at[j].add(d_v_j)

        d_q_t = jnp.zeros((kv_heads, channels, queries), dtype)
        d_q_t, d_k, d_v = jax.lax.fori_loop(0, blocks.count_Q[i], visit, (d_q_t, d_k, d_v))
        return d_q.at[i].set(d_q_t.swapaxes(1, 2)), d_k, d_v

    zeros = (jnp.zeros(q.shape, dtype), jnp.zeros(k.shape, dtype), jnp.zeros(v.shape, dtype))
    d_q, d_k, d_v = jax.lax.fori_loop(0, n, one_block, zeros)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attend_blocks.defvjp(_attend_forward, _attend_backward)


def tree_attention(
    q_RTHC: jax.Array,
    k_RTKC: jax.Array,
    v_RTKC: jax.Array,
    end_RT: jax.Array,
    backend: Backend = "blockwise",
    blocks: KeyBlocks | None = None,
    block: int = DEFAULT_BLOCK,
) -> tuple[jax.Array, jax.Array]:
    """Attention of every row over its packed trees. Returns (out_RTHC, lse_RTH).

    `end_RT` counts inside the row. `blocks` (of `key_blocks(flatten_end(end_RT))`) saves
    computing the list again in every layer.
    """
    rows, row_tokens, heads, channels = q_RTHC.shape
    q, k, v = (x.reshape(rows * row_tokens, *x.shape[2:]) for x in (q_RTHC, k_RTKC, v_RTKC))
    if backend == "blockwise" and blocks is None:
        blocks = key_blocks(flatten_end(end_RT), block)
    out, lse = _attend_tokens(q, k, v, end_RT, backend, blocks)
    return out.reshape(q_RTHC.shape), lse.reshape(rows, row_tokens, heads)


def _attend_tokens(
    q_NHC: jax.Array, k_NKC: jax.Array, v_NKC: jax.Array, end_RT: jax.Array,
    backend: Backend, blocks: KeyBlocks | None,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """The attention of `backend` over rows laid one after the other; `blocks` for blockwise."""
    if backend == "blockwise":
        return blockwise_tree_attention(q_NHC, k_NKC, v_NKC, blocks)
    attend = native_tree_attention if backend == "native" else dense_tree_attention
    return attend(q_NHC, k_NKC, v_NKC, flatten_end(end_RT))


def make_attend(
    end_RT: jax.Array,
    mesh: Mesh | None = None,
    backend: Backend = "blockwise",
    block: int = DEFAULT_BLOCK,
):
    """The `attend(q_NHC, k_NKC, v_NKC, kv_layer)` that the transformer calls in every layer.

    With a mesh, rows are split over the axes data and fsdp and heads over tensor (if the number
    of key heads divides), and every device attends over its own part: no communication.
    """
    rows, row_tokens = end_RT.shape
    if mesh is None:
        blocks = key_blocks(flatten_end(end_RT), block) if backend == "blockwise" else None

        def attend(q_NHC, k_NKC, v_NKC, kv_layer):
            return _attend_tokens(q_NHC, k_NKC, v_NKC, end_RT, backend, blocks)[0], kv_layer

        return attend

    def attend_sharded(q_NHC, k_NKC, v_NKC, kv_layer):
        tensor = mesh.shape[HEAD_AXIS]
        split = k_NKC.shape[1] % tensor == 0
        heads = PartitionSpec(ROW_AXES, None, HEAD_AXIS if split else None, None)
        local = jax.shard_map(
            functools.partial(_attend_rows, backend=backend, block=block),
            mesh=mesh,
            in_specs=(heads, heads, heads, PartitionSpec(ROW_AXES, None)),
            out_specs=heads,
            check_vma=False,
        )
        q, k, v = (x.reshape(rows, row_tokens, *x.shape[1:]) for x in (q_NHC, k_NKC, v_NKC))
        return local(q, k, v, end_RT).reshape(q_NHC.shape), kv_layer

    return attend_sharded


def _attend_rows(q_RTHC, k_RTKC, v_RTKC, end_RT, *, backend, block):
    return tree_attention(q_RTHC, k_RTKC, v_RTKC, end_RT, backend, block=block)[0]
