import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import random_tree

from spark_jax.learn.advantage import leaf_group, uniform_weights
from spark_jax.learn.credit import segment_weights
from spark_jax.learn.pack import pack_trees
from spark_jax.ops.tree_attention import (
    blockwise_tree_attention,
    dense_tree_attention,
    flatten_end,
    tree_attention,
    visible_blocks,
    visible_NN,
)


def packed_end(rows_multiple=2, row_tokens=96, seeds=range(6)):
    items = []
    for seed in seeds:
        tree = random_tree(seed, depth=8)
        w = uniform_weights(tree)
        items.append((tree, segment_weights(tree, leaf_group(tree, w), w)))
    batch, _ = pack_trees(items, row_tokens, rows_multiple=rows_multiple)
    return batch.end_RT


def random_qkv(key, n, heads, kv_heads, channels, dtype):
    keys = jax.random.split(jax.random.key(key), 3)
    shapes = [(n, heads, channels), (n, kv_heads, channels), (n, kv_heads, channels)]
    return [jax.random.normal(k, s, dtype) * 2.0 for k, s in zip(keys, shapes, strict=True)]


def values_and_gradients(attention, q, k, v):
    weights = jnp.sin(jnp.arange(q.size, dtype=q.dtype)).reshape(q.shape)

    def total(q, k, v):
        out, lse = attention(q, k, v)
        # Both results count, the log-sum-exp too.
        return (out * weights).sum() + (jnp.cos(lse) * weights[..., 0]).sum()

    grads = jax.jit(jax.grad(total, (0, 1, 2)))(q, k, v)
    return (*jax.jit(attention)(q, k, v), *grads)


@pytest.mark.parametrize(
    "dtype,tolerance,heads,kv_heads,block,together",
    [
        ("float64", 1e-12, 6, 2, 32, 2),
        ("float32", 1e-5, 6, 2, 8, 1),
        ("float32", 1e-5, 6, 2, 8, 5),
        ("float32", 1e-5, 3, 1, 32, 100),
    ],
)
def test_blockwise_equals_dense(dtype, tolerance, heads, kv_heads, block, together):
    with jax.enable_x64(dtype == "float64"):
        end = flatten_end(jnp.asarray(packed_end(row_tokens=90)))[:-7]  # not a multiple of a block
        end = jnp.minimum(end, end.size)
        q, k, v = random_qkv(0, end.size, heads, kv_heads, 8, dtype)
        blocks = visible_blocks(end, block, together)
        fast = values_and_gradients(lambda *x: blockwise_tree_attention(*x, blocks), q, k, v)
        slow = values_and_gradients(lambda *x: dense_tree_attention(*x, end), q, k, v)
        assert fast[0].dtype == dtype
        for a, b in zip(fast, slow, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))


def test_dense_is_the_softmax_of_the_formula():
    end = np.array([5, 3, 3, 5, 5, 6])  # two leaves (1-2, 3-4) below token 0; token 5 alone
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 6, 1, 4))
    out, lse = dense_tree_attention(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), end)
    for i, seen in enumerate([[0], [0, 1], [0, 1, 2], [0, 3], [0, 3, 4], [5]]):
        scores = np.array([q[i, 0] @ k[j, 0] / 2.0 for j in seen])
        expected = sum(np.exp(s) * v[j, 0] for s, j in zip(scores, seen, strict=True))
        np.testing.assert_allclose(out[i, 0], expected / np.exp(scores).sum(), rtol=1e-5)
        np.testing.assert_allclose(lse[i, 0], np.log(np.exp(scores).sum()), rtol=1e-5)


def test_rows_do_not_see_each_other():
    end_RT = jnp.asarray(packed_end())
    rows, tokens = end_RT.shape
    q, k, v = (x.reshape(rows, tokens, -1, 8) for x in random_qkv(1, rows * tokens, 4, 2, 8, "f4"))
    for backend in ("dense", "blockwise"):
        out, lse = tree_attention(q, k, v, end_RT, backend, block=16)
        for r in range(rows):
            alone, lse_alone = dense_tree_attention(q[r], k[r], v[r], end_RT[r])
            np.testing.assert_allclose(out[r], alone, atol=1e-5)
            np.testing.assert_allclose(lse[r], lse_alone, atol=1e-5)


def test_exactly_the_visible_blocks_are_listed():
    end = flatten_end(jnp.asarray(packed_end()))
    block = 8
    blocks = visible_blocks(end, block, together=3)
    together = blocks.keys_XYS.shape[1]
    count = end.size // block
    dense = np.asarray(visible_NN(end)).reshape(count, block, count, block).any(axis=(1, 3))
    for i in range(count):
        at = divmod(i, together)
        keys = list(blocks.keys_XYS[at][: blocks.key_count_XY[at]])
        queries = list(blocks.queries_XYS[at][: blocks.query_count_XY[at]])
        assert keys == list(np.flatnonzero(dense[i]))
        assert queries == list(np.flatnonzero(dense[:, i]))
    assert int(blocks.key_count_XY.sum()) < count * (count + 1) // 2  # the mask excludes blocks


def test_bfloat16_is_close():
    end = flatten_end(jnp.asarray(packed_end()))
    q, k, v = random_qkv(2, end.size, 4, 2, 8, jnp.bfloat16)
    fast, lse = blockwise_tree_attention(q, k, v, visible_blocks(end, 16))
    slow, _ = dense_tree_attention(*(x.astype(jnp.float32) for x in (q, k, v)), end)
    assert fast.dtype == jnp.bfloat16 and lse.dtype == jnp.float32
    np.testing.assert_allclose(fast.astype(jnp.float32), slow, atol=0.05)
