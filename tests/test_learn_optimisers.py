import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spark_jax.learn.optimisers import MUON_RMS, OPTIMISERS, muon
from spark_jax.models.config import ModelConfig
from spark_jax.models.transformer import init_params

CONFIG = ModelConfig(
    vocab_size=24, layers=1, width=16, heads=2, kv_heads=1, head_dim=8, feed_forward=40,
    qk_norm=True, tied=False,
)  # fmt: skip


def parameters_and_gradients():
    params = jax.tree.map(lambda x: x * 10, init_params(CONFIG, jax.random.key(0)))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    grads = [jax.random.normal(k, x.shape) * 1e-3 for k, x in zip(keys, leaves, strict=True)]
    return params, jax.tree.unflatten(structure, grads)


def first_update(optimiser):
    params, grads = parameters_and_gradients()
    state = optimiser.init(params)
    return params, grads, jax.jit(optimiser.update)(grads, state, params)[0]


def test_muon_turns_the_gradient_of_a_layer_matrix_into_equal_singular_values():
    params, grads, update = first_update(muon(weight_decay=0.0))
    for name in ("q", "k", "o", "gate", "down"):
        u, g = update["layers_0"][name]["kernel"], grads["layers_0"][name]["kernel"]
        s = np.linalg.svd(u, compute_uv=False) / (MUON_RMS * np.sqrt(max(u.shape)))
        assert 0.6 < s.min() and s.max() < 1.3, name  # what five steps of Newton-Schulz reach
        assert float((u * g).sum()) > 0  # `Steps.apply` subtracts it
        assert float(jnp.sqrt((u * u).mean())) == pytest.approx(MUON_RMS, rel=0.25)


def test_muon_leaves_embeddings_and_scales_to_adam():
    params, grads, update = first_update(muon(weight_decay=0.0))
    for path in (("embed", "embedding"), ("unembed", "kernel"), ("final_norm", "scale")):
        u, g = update[path[0]][path[1]], grads[path[0]][path[1]]
        # A first step of Adam with Nesterov momentum is the sign of the gradient, nearly doubled.
        np.testing.assert_array_equal(jnp.sign(u), jnp.sign(g))
        assert np.ptp(np.abs(u)) < 0.05 * float(jnp.abs(u).max())
    scale = update["layers_0"]["q_norm"]["scale"]
    assert np.ptp(np.abs(scale)) < 0.05 * float(jnp.abs(scale).max())


@pytest.mark.parametrize("name", OPTIMISERS)
def test_only_matrices_decay(name):
    params, _, plain = first_update(OPTIMISERS[name](weight_decay=0.0))
    _, _, decayed = first_update(OPTIMISERS[name](weight_decay=0.5))
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        pick = lambda tree, path=path: dict(jax.tree_util.tree_leaves_with_path(tree))[path]  # noqa: E731
        expected = 0.5 * x if x.ndim > 1 else 0 * x
        np.testing.assert_allclose(pick(decayed) - pick(plain), expected, atol=1e-5)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_large_gradient_is_clipped(name):
    params, grads = parameters_and_gradients()
    optimiser = OPTIMISERS[name](max_norm=1.0)

    def state_after(factor):
        scaled = jax.tree.map(lambda g: g * factor, grads)
        return jax.tree.leaves(optimiser.update(scaled, optimiser.init(params), params)[1])

    for a, b in zip(state_after(1e4), state_after(1e6), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)
