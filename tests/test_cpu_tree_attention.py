"""The learner's attention in C++ against the formula."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from native import needs_native
from test_tree_attention import packed_end, random_qkv, values_and_gradients
from trees import random_tree

from spark_jax.learn.advantage import leaf_group, uniform_weights
from spark_jax.learn.credit import segment_weights
from spark_jax.learn.pack import pack_trees
from spark_jax.models.config import nano_config
from spark_jax.models.transformer import forward, init_params
from spark_jax.ops.cpu_tree_attention import native_tree_attention
from spark_jax.ops.tree_attention import (
    dense_tree_attention,
    flatten_end,
    make_attend,
    tree_attention,
)
from spark_jax.run.config import load_config
from spark_jax.run.policy import load_policy, rl_steps, sft_steps

pytestmark = needs_native


def compare(q, k, v, end, tolerance=1e-5):
    fast = values_and_gradients(lambda *x: native_tree_attention(*x, end), q, k, v)
    slow = values_and_gradients(lambda *x: dense_tree_attention(*x, end), q, k, v)
    for a, b in zip(fast, slow, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))


@pytest.mark.parametrize(
    "heads,kv_heads,channels",
    [(9, 3, 64), (5, 1, 8), (6, 2, 24), (14, 2, 128)],
)
def test_packed_trees(heads, kv_heads, channels):
    """Values, both results' gradients; heads that fill registers and heads that do not."""
    end = flatten_end(jnp.asarray(packed_end(row_tokens=90, seeds=range(1))))
    assert end.size > 4 * 64  # several blocks, so that some are seen whole and some not at all
    compare(*random_qkv(0, end.size, heads, kv_heads, channels, "float32"), end)


@pytest.mark.parametrize("tokens", [1, 64, 65])
def test_sizes_at_the_edges_of_blocks(tokens):
    """One long path, and as many tokens that see but themselves."""
    q, k, v = random_qkv(tokens, tokens, 4, 2, 16, "float32")
    compare(q, k, v, jnp.full(tokens, tokens, jnp.int32))
    compare(q, k, v, jnp.arange(1, tokens + 1, dtype=jnp.int32))


@pytest.mark.parametrize("seed", range(2))
def test_any_nesting_at_all(seed):
    """Subtrees that end anywhere, blocks that are seen by one token of another."""
    rng = np.random.default_rng(seed)
    end, stack = np.zeros(400, np.int32), []
    for j in range(400):
        stack.append(j)
        while len(stack) > 1 and rng.random() < 0.3:
            end[stack.pop()] = j + 1
    end[stack] = 400
    compare(*random_qkv(seed, 400, 2, 1, 32, "float32"), jnp.asarray(end))


def test_scores_far_apart_lose_nothing():
    end = jnp.full(200, 200, jnp.int32)
    q, k, v = random_qkv(0, 200, 2, 1, 16, "float32")
    for scale in (1e-3, 30.0, 300.0):
        out, lse = native_tree_attention(scale * q, k, v, end)
        wanted, wanted_lse = dense_tree_attention(scale * q, k, v, end)
        np.testing.assert_allclose(out, wanted, rtol=1e-3, atol=5e-3)
        np.testing.assert_allclose(lse, wanted_lse, rtol=1e-5, atol=1e-5)


def test_the_same_numbers_every_time():
    """Threads take blocks as they come, but sums have a fixed order."""
    end = flatten_end(jnp.asarray(packed_end(row_tokens=256, seeds=range(24))))
    q, k, v = random_qkv(0, end.size, 4, 2, 32, "float32")
    first, *others = (
        values_and_gradients(lambda *x: native_tree_attention(*x, end), q, k, v) for _ in range(4)
    )
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_rows_do_not_see_each_other():
    end_RT = jnp.asarray(packed_end())
    rows, tokens = end_RT.shape
    q, k, v = (x.reshape(rows, tokens, -1, 8) for x in random_qkv(1, rows * tokens, 4, 2, 8, "f4"))
    out, lse = tree_attention(q, k, v, end_RT, "native")
    for r in range(rows):
        alone, lse_alone = dense_tree_attention(q[r], k[r], v[r], end_RT[r])
        np.testing.assert_allclose(out[r], alone, atol=1e-5)
        np.testing.assert_allclose(lse[r], lse_alone, atol=1e-5)


def test_bfloat16_is_computed_in_float32():
    end = jnp.full(100, 100, jnp.int32)
    q, k, v = random_qkv(2, 100, 4, 2, 8, jnp.bfloat16)
    out, lse = native_tree_attention(q, k, v, end)
    wanted, _ = dense_tree_attention(*(x.astype(jnp.float32) for x in (q, k, v)), end)
    assert out.dtype == jnp.bfloat16 and lse.dtype == jnp.float32
    np.testing.assert_allclose(out.astype(jnp.float32), wanted, rtol=2**-8, atol=1e-6)
    grads = jax.grad(lambda q: native_tree_attention(q, k, v, end)[0].sum())(q)
    assert grads.dtype == jnp.bfloat16


def test_float64_is_refused():
    with jax.enable_x64(True):
        q, k, v = random_qkv(0, 8, 2, 1, 8, "float64")
        with pytest.raises(TypeError, match="blockwise backend for float64"):
            native_tree_attention(q, k, v, jnp.full(8, 8))


@pytest.mark.parametrize("make", [sft_steps, rl_steps])
@pytest.mark.parametrize("backend", ["auto", "xla"])
def test_the_learner_has_it_by_default_and_not_with_xla(make, backend, tmp_path):
    toy = str(pathlib.Path(__file__).parents[1] / "configs" / "toy.py")
    settings = ["model.preset=nano", f"rollout.backend={backend}"]
    config = load_config(toy, settings)
    policy = load_policy(config, tmp_path, ["open the red door"])
    tree = random_tree(0, vocab=16)
    w = uniform_weights(tree)
    items = [(tree, segment_weights(tree, leaf_group(tree, w), w))]
    (batch,) = pack_trees(items, 256)[0:1]
    program = str(jax.make_jaxpr(make(config, policy).score)(policy.params, batch))
    assert ("spark_tree_forward" in program) == (backend == "auto")


def test_gradient_of_a_model_is_that_of_the_blockwise_one():
    """Through layers, norms and rotations, also where layers are computed again."""
    config = nano_config(64)
    params = init_params(config, jax.random.key(0))
    end_RT = jnp.asarray(packed_end(row_tokens=96, seeds=range(4)))
    tokens = jnp.arange(end_RT.size) * 7 % 64

    def loss(params, backend, remat):
        attend = make_attend(end_RT, backend=backend)
        hidden, _ = forward(params, config, tokens, tokens % 50, attend, remat=remat)
        return jnp.sin(hidden).sum()

    gradient = jax.jit(jax.grad(loss), static_argnums=(1, 2))
    wanted = gradient(params, "blockwise", False)
    for remat in (False, True):
        fast = gradient(params, "native", remat)
        for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(wanted), strict=True):
            assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)
