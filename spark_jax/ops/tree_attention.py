"""Attention over trees packed in depth-first order (learn/pack.py).

`end[j]` is the index one past the subtree of token j's node; token i may look at token j iff
`j <= i < end[j]`. One integer per key says it all: paths of the tree, several trees in one row,
rows that lie one after the other (offset `end` by the start of the row), and padding
(`end[j] = j + 1`: a token that sees itself and that nobody else sees).

`dense_tree_attention` is the formula, `blockwise_tree_attention` the fast twin: exact, never a
[T, T] buffer, and blocks that the mask hides cost nothing, forward and backward. Some neighbouring
blocks of queries look at their next blocks of keys together: as many as fill an accelerator, which
would be idle between the small steps of one. A group goes on as long as one of its blocks does.
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
TOGETHER = {"cpu": 1}  # blocks whose steps are taken together
MORE_TOGETHER = 32  # elsewhere (a choice that was not measured)
ROW_AXES = ("data", "fsdp")
HEAD_AXIS = "tensor"


class Blocks(NamedTuple):
    """Which blocks of queries see which blocks of keys. Computed once a batch.

    Blocks are in X groups of Y neighbours. Block i = x Y + y of queries sees
    `keys_XYS[x, y, :key_count_XY[x, y]]`, as a block of keys it is seen by
    `queries_XYS[x, y, :query_count_XY[x, y]]`, both in ascending order. What comes after these is
    hidden by the mask altogether.
    """

    end_NB: jax.Array  # int32, the tokens of each block; padded
    keys_XYS: jax.Array  # int32
    key_count_XY: jax.Array  # int32
    queries_XYS: jax.Array  # int32
    query_count_XY: jax.Array  # int32


def flatten_end(end_RT: jax.Array) -> jax.Array:
    """`end` of rows laid one after the other, [R*T]: row r starts at r*T."""
    rows, row_tokens = end_RT.shape
    start_R = jnp.arange(rows, dtype=jnp.int32) * row_tokens
    return (end_RT.astype(jnp.int32) + start_R[:, None]).reshape(-1)


def visible_NN(end_N: jax.Array) -> jax.Array:
    """The mask itself, [query, key]: j <= i < end[j]."""
    i = jnp.arange(end_N.shape[0])
    return (i[None, :] <= i[:, None]) & (i[:, None] < end_N[None, :])


def visible_blocks(
    end_N: jax.Array, block: int = DEFAULT_BLOCK, together: int | None = None
) -> Blocks:
    """The compact lists of visible blocks. A block of keys is visible from a later block of queries
    iff one of its subtrees reaches into it, that is if its largest `end` lies past the queries'
    first index. `together`: the Y of `Blocks`; by default what suits the device."""
    count = -(-end_N.shape[0] // block)
    together = together or TOGETHER.get(jax.default_backend(), MORE_TOGETHER)
    together = -(-count // -(-count // together))  # groups as equal as can be
    padding = -(-count // together) * together * block - end_N.shape[0]
    own = jnp.arange(end_N.shape[0], end_N.shape[0] + padding, dtype=jnp.int32) + 1
    end_NB = jnp.concatenate([end_N.astype(jnp.int32), own]).reshape(-1, block)
    index = jnp.arange(end_NB.shape[0], dtype=jnp.int32)
    reach = end_NB.max(axis=1)
    seen_QK = (index[None, :] <= index[:, None]) & (reach[None, :] > index[:, None] * block)

    def listed(seen):
        first = jnp.argsort(~seen, axis=1, stable=True).astype(jnp.int32)
        number = seen.sum(axis=1).astype(jnp.int32)
        return (x.reshape(-1, together, *x.shape[1:]) for x in (first, number))

    return Blocks(end_NB, *listed(seen_QK), *listed(seen_QK.T))


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
    q_NHC: jax.Array, k_NKC: jax.Array, v_NKC: jax.Array, blocks: Blocks
) -> tuple[jax.Array, jax.Array]:
    """As `dense_tree_attention`, over `blocks = visible_blocks(end_N)` only.

    Flash-style online softmax; the backward pass computes the weights again from the log-sum-exp,
    once by queries and once by keys, so that no two blocks add to the same sum.
    """
    n, heads, channels = q_NHC.shape
    kv_heads = k_NKC.shape[1]
    groups = heads // kv_heads
    count, block = blocks.end_NB.shape
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


def _visible(blocks: Blocks, i: jax.Array, j: jax.Array, groups: int) -> jax.Array:
    """Mask of blocks `i` of queries against blocks `j` of keys, [n, 1, groups * block, block]."""
    block = blocks.end_NB.shape[1]
    offset = jnp.arange(block, dtype=jnp.int32)
    query = (i[:, None] * block + offset)[:, :, None]
    key = (j[:, None] * block + offset)[:, None, :]
    mask = (key <= query) & (query < blocks.end_NB[j][:, None, :])
    return jnp.tile(mask, (1, groups, 1))[:, None]


@jax.custom_vjp
def _attend_blocks(q, k, v, blocks):
    """q [n, K, G*block, C] (scaled), k, v [n, K, block, C] -> out like q, lse [n, K, G*block]."""
    return _attend_forward(q, k, v, blocks)[0]


def _attend_forward(q, k, v, blocks):
    n, kv_heads, queries, channels = q.shape
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    groups, together = queries // k.shape[2], blocks.keys_XYS.shape[1]

    def neighbours(i, q, keys_YS, count_Y):
        def visit(s, state):
            best, total, acc = state
            j = keys_YS[:, s]
            scores = jnp.einsum("nkqc,nkjc->nkqj", q, k[j], preferred_element_type=dtype)
            scores = jnp.where(_visible(blocks, i, j, groups), scores, -jnp.inf)
            new = jnp.maximum(best, scores.max(axis=-1))
            # A query that has seen nothing yet keeps best = -inf; exp(-inf - 0) is 0.
            shift = jnp.where(new == -jnp.inf, 0.0, new)
            weights = jnp.exp(scores - shift[..., None])
            keep = jnp.exp(best - shift)
            part = jnp.einsum(
                "nkqj,nkjc->nkqc", weights.astype(v.dtype), v[j], preferred_element_type=dtype
            )
            return new, total * keep + weights.sum(axis=-1), acc * keep[..., None] + part

        start = (
            jnp.full((together, kv_heads, queries), -jnp.inf, dtype),
            jnp.zeros((together, kv_heads, queries), dtype),
            jnp.zeros((together, kv_heads, queries, channels), dtype),
        )
        best, total, acc = jax.lax.fori_loop(0, count_Y.max(), visit, start)
        return acc / total[..., None], best + jnp.log(total)

    out, lse = _by_neighbours(neighbours, (q,), blocks.keys_XYS, blocks.key_count_XY)
    return (out, lse), (q, k, v, blocks, out, lse)


def _by_neighbours(function, arrays, lists_XYS, count_XY):
    """`function(i, *arrays, list_YS, count_Y)` of each group of Y blocks, whose numbers are `i`."""
    X, Y, _ = lists_XYS.shape
    index = jnp.arange(X * Y, dtype=jnp.int32)
    grouped = (x.reshape(X, Y, *x.shape[1:]) for x in (index, *arrays))
    out = jax.lax.map(lambda x: function(*x), (*grouped, lists_XYS, count_XY))
    return jax.tree.map(lambda x: x.reshape(X * Y, *x.shape[2:]), out)


def _attend_backward(saved, cotangents):
    q, k, v, blocks, out, lse = saved
    d_out, d_lse = cotangents
    groups, dtype = q.shape[2] // k.shape[2], lse.dtype
    # d scores = weights * (d weights - delta), with the cotangent of the log-sum-exp folded in.
    delta = (d_out * out).sum(axis=-1) - d_lse
    d_out = d_out.astype(v.dtype)
    product = functools.partial(jnp.einsum, preferred_element_type=dtype)

    def of_scores(i, j, q, k, v, d_out, lse, delta):
        """Weights, and what the scores' cotangents are, of blocks i of queries and j of keys."""
        scores = product("nkqc,nkjc->nkqj", q, k)
        weights = jnp.where(_visible(blocks, i, j, groups), jnp.exp(scores - lse[..., None]), 0.0)
        d_weights = product("nkqc,nkjc->nkqj", d_out, v)
        return weights.astype(q.dtype), (weights * (d_weights - delta[..., None])).astype(q.dtype)

    def by_queries(i, q, d_out, lse, delta, keys_YS, count_Y):
        def visit(s, d_q):
            j = keys_YS[:, s]
            _, d_scores = of_scores(i, j, q, k[j], v[j], d_out, lse, delta)
            return d_q + product("nkqj,nkjc->nkqc", d_scores, k[j])

        return jax.lax.fori_loop(0, count_Y.max(), visit, jnp.zeros(q.shape, dtype))

    def by_keys(j, k, v, queries_YS, count_Y):
        def visit(s, sums):
            d_k, d_v = sums
            i = queries_YS[:, s]
            weights, d_scores = of_scores(i, j, q[i], k, v, d_out[i], lse[i], delta[i])
            d_k += product("nkqj,nkqc->nkjc", d_scores, q[i])
            return d_k, d_v + product("nkqj,nkqc->nkjc", weights, d_out[i])

        nothing = jnp.zeros(k.shape, dtype), jnp.zeros(v.shape, dtype)
        return jax.lax.fori_loop(0, count_Y.max(), visit, nothing)

    seen, by = (q, d_out, lse, delta), (blocks.queries_XYS, blocks.query_count_XY)
    d_q = _by_neighbours(by_queries, seen, blocks.keys_XYS, blocks.key_count_XY)
    d_k, d_v = _by_neighbours(by_keys, (k, v), *by)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attend_blocks.defvjp(_attend_forward, _attend_backward)


def tree_attention(
    q_RTHC: jax.Array,
    k_RTKC: jax.Array,
    v_RTKC: jax.Array,
    end_RT: jax.Array,
    backend: Backend = "blockwise",
    blocks: Blocks | None = None,
    block: int = DEFAULT_BLOCK,
) -> tuple[jax.Array, jax.Array]:
    """Attention of every row over its packed trees. Returns (out_RTHC, lse_RTH).

    `end_RT` counts inside the row. `blocks` (of `visible_blocks(flatten_end(end_RT))`) saves
    computing the list again in every layer.
    """
    rows, row_tokens, heads, channels = q_RTHC.shape
    q, k, v = (x.reshape(rows * row_tokens, *x.shape[2:]) for x in (q_RTHC, k_RTKC, v_RTKC))
    if backend == "blockwise" and blocks is None:
        blocks = visible_blocks(flatten_end(end_RT), block)
    out, lse = _attend_tokens(q, k, v, end_RT, backend, blocks)
    return out.reshape(q_RTHC.shape), lse.reshape(rows, row_tokens, heads)


def _attend_tokens(
    q_NHC: jax.Array, k_NKC: jax.Array, v_NKC: jax.Array, end_RT: jax.Array,
    backend: Backend, blocks: Blocks | None,
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
        blocks = visible_blocks(flatten_end(end_RT), block) if backend == "blockwise" else None

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
