"""Loss, gradients and an update on 8 virtual devices equal those of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import dataclasses, functools, sys
import jax, jax.numpy as jnp, numpy as np
from trees import random_tree
from spark_jax.learn.advantage import leaf_group, uniform_weights
from spark_jax.learn.credit import normaliser, segment_weights
from spark_jax.learn.loss import policy_loss
from spark_jax.learn.pack import micro_batches, pack_trees
from spark_jax.learn.optimisers import adamw, muon
from spark_jax.learn.step import make_steps, optimiser_step, put_batch, state_shardings
from spark_jax.models.config import ModelConfig
from spark_jax.models.sharding import make_mesh, param_shardings
from spark_jax.models.transformer import init_params
from spark_jax.ops import tree_attention

assert jax.device_count() == 8
tree_attention.TOGETHER["cpu"] = 2  # as on accelerators: several blocks together
config = ModelConfig(vocab_size=64, layers=2, width=32, heads=4, kv_heads=2, head_dim=8,
                     feed_forward=48)
items = []
for seed in range(8):
    tree = random_tree(seed, leaves=9)
    w = uniform_weights(tree)
    items.append((tree, segment_weights(tree, leaf_group(tree, w), w)))
batch, stats = pack_trees(items, 128, rows_multiple=8)
assert stats.rows > 8
z = normaliser(items)
loss = functools.partial(policy_loss, entropy_coef=0.01)


def run(mesh, optimiser=adamw):
    steps = make_steps(config, loss, optimiser(), mesh=mesh, block=32, entropy_gradient=True)
    params = jax.tree.map(lambda x: x * 4, init_params(config, jax.random.key(0)))
    if mesh is not None:
        params = jax.device_put(params, param_shardings(params, mesh))
    batches = [put_batch(b, mesh) for b in micro_batches(batch, 8)]
    batches = [b._replace(ref_logp_RM=steps.score(params, b)[0] + 0.1) for b in batches]
    sums = steps.zero(params)
    for b in batches:
        sums = steps.gradient(params, sums, b, z)
    state = steps.init(params)
    if mesh is not None:
        wanted = param_shardings(params, mesh)
        moments = (state[1].mu, state[1].nu) if optimiser is adamw else ()
        for tree in (sums.grads, *moments):
            jax.tree.map(lambda x, s: np.testing.assert_(
                x.sharding.is_equivalent_to(s, x.ndim), (x.sharding, s)), tree, wanted)
        jax.tree.map(lambda x, s: np.testing.assert_(x.sharding.is_equivalent_to(s, x.ndim)),
                     state, state_shardings(optimiser(), params, mesh))
        jax.tree.map(lambda x, s: np.testing.assert_(
            (x.shape, x.dtype) == (s.shape, s.dtype)
            and x.sharding.is_equivalent_to(s.sharding, x.ndim)), state, steps.shapes(params))
        if mesh.shape["fsdp"] > 1:
            (kernel,) = [x for path, x in jax.tree_util.tree_leaves_with_path(state)
                         if "mu" in str(path) and "layers_0" in str(path) and "down" in str(path)]
            assert kernel.addressable_shards[0].data.size < kernel.size
    out = jax.tree.map(np.array, (batches[0].ref_logp_RM, sums))
    params, state, metrics = optimiser_step(steps, params, state, batches, z, 1e-3)
    if mesh is not None:
        jax.tree.map(lambda x, s: np.testing.assert_(x.sharding.is_equivalent_to(s, x.ndim)),
                     params, wanted)
    return *out, jax.tree.map(np.array, (params, metrics))


(score, sums, (params, metrics)) = run(None)
for sizes in ((2, 2, 2), (2, 1, 4)):  # 2 key heads: the last one cannot split them
    (score_8, sums_8, (params_8, metrics_8)) = run(make_mesh(*sizes))
    np.testing.assert_allclose(score_8, score, atol=1e-5)
    np.testing.assert_allclose(sums_8.metrics["loss"], sums.metrics["loss"], rtol=1e-4)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(sums_8.grads),
                            jax.tree.leaves(sums.grads), strict=True):
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert error < 1e-5, (sizes, path, error)
    np.testing.assert_allclose(metrics_8["grad_norm"], metrics["grad_norm"], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(params_8), jax.tree.leaves(params), strict=True):
        # Adam's first step is the sign of the gradient: where that is all but 0 it may flip.
        assert np.mean(np.abs(a - b) > 1e-4) < 0.01
    print("same on", sizes)
config = dataclasses.replace(config, layers=1)
(*_, (params, metrics)) = run(None, muon)
(*_, (params_8, _)) = run(make_mesh(2, 2, 2), muon)
for a, b in zip(jax.tree.leaves(params_8["layers_0"]), jax.tree.leaves(params["layers_0"]),
                strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)
print("same with muon")

mesh = make_mesh(2, 2, 2)
narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), init_params(config, jax.random.key(0)))
narrow = jax.device_put(narrow, param_shardings(narrow, mesh))
steps, wanted = make_steps(config, loss, adamw(), mesh=mesh), param_shardings(narrow, mesh)
state, sums = steps.init(narrow), steps.zero(narrow)
jax.tree.map(lambda x, s: np.testing.assert_(x.sharding.is_equivalent_to(s, x.ndim)),
             state, state_shardings(adamw(), narrow, mesh))
narrow, state, _ = steps.apply(narrow, state, sums, 1e-3)
for tree in (narrow, state.master, state.inner[1].mu):
    jax.tree.map(lambda x, s: np.testing.assert_(x.sharding.is_equivalent_to(s, x.ndim)),
                 tree, wanted)
print("the float32 copy lies as its parameters do")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="virtual devices are tested on POSIX")
def test_eight_devices_equal_one():
    root = Path(__file__).parent.parent
    environment = {
        **os.environ,
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("same on") == 2 and "lies as its parameters do" in done.stdout
