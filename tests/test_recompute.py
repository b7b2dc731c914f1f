"""Recomputation keeps the gradient and, unlike jax.checkpoint on a CPU, saves memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spark_jax.ops.recompute import recomputed

LAYERS, TOKENS, WIDTH = 12, 256, 64


def layer(weights, x):
    """Much inside, little in and out."""
    return x + jnp.tanh(x @ weights["up"]) @ weights["down"]


def loss(layer, weights, x):
    for w in weights:
        x = layer(w, x)
    return (x**2).mean()


@pytest.fixture
def inputs():
    keys = jax.random.split(jax.random.key(0), 2 * LAYERS + 1)
    weights = [
        {
            "up": 0.1 * jax.random.normal(keys[2 * i], (WIDTH, 8 * WIDTH)),
            "down": 0.1 * jax.random.normal(keys[2 * i + 1], (8 * WIDTH, WIDTH)),
        }
        for i in range(LAYERS)
    ]
    return weights, jax.random.normal(keys[-1], (TOKENS, WIDTH))


def gradient(layer):
    return jax.jit(jax.grad(lambda weights, x: loss(layer, weights, x), argnums=(0, 1)))


def test_same_gradient(inputs):
    plain, saving = gradient(layer)(*inputs), gradient(recomputed(layer))(*inputs)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(saving), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


def test_what_is_closed_over_may_be_traced(inputs):
    weights, x = inputs

    def masked(recompute):
        def total(weights, x, keep):
            def run(w, x):
                return layer(w, x) * keep

            return loss(recomputed(run) if recompute else run, weights, x)

        return jax.jit(jax.grad(total))(weights, x, jnp.arange(TOKENS)[:, None] < 100)

    for a, b in zip(jax.tree.leaves(masked(False)), jax.tree.leaves(masked(True)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


def test_a_lost_cotangent_stays_lost(inputs):
    weights, x = inputs
    grads = gradient(recomputed(layer))(weights, x.at[0, 0].set(jnp.nan))
    assert all(bool(jnp.isnan(g).any()) for g in jax.tree.leaves(grads[0]))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the memory plan asked for is XLA:CPU's")
def test_activations_of_one_layer_are_held_at_a_time(inputs):
    def temporary(layer):
        compiled = gradient(layer).lower(*inputs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    inside = TOKENS * 8 * WIDTH * 4  # bytes of the widest activation
    assert temporary(layer) > LAYERS * inside
    assert temporary(recomputed(layer)) < 0.5 * LAYERS * inside
