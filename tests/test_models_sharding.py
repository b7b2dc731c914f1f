"""Sharding rules: on paper for large models, and run on eight virtual CPU devices."""

import os
import subprocess
import sys
from math import prod

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from spark_jax.models.config import ModelConfig, parameter_count
from spark_jax.models.sharding import (
    AXES,
    RULES,
    cache_sharding,
    make_mesh,
    param_shardings,
    spec_of,
)
from spark_jax.models.transformer import param_shapes
from spark_jax.types import UserError

QWEN7B = ModelConfig(
    vocab_size=152064,
    layers=28,
    width=3584,
    heads=28,
    kv_heads=4,
    head_dim=128,
    feed_forward=18944,
    qkv_bias=True,
    tied=False,
    param_dtype="bfloat16",
)

ON_EIGHT_DEVICES = """
import dataclasses, jax, jax.numpy as jnp, numpy as np, tempfile
from spark_jax.models.config import ModelConfig
from spark_jax.models.sharding import make_mesh, param_shardings, row_sharding
from spark_jax.models.transformer import *
from spark_jax.models.weights import load_safetensors, save_safetensors

assert jax.device_count() == 8
BASE = ModelConfig(vocab_size=128, layers=2, width=64, heads=4, kv_heads=2, head_dim=16,
                   feed_forward=96, qkv_bias=True)
ROWS, LENGTH = 8, 12
tokens = np.random.default_rng(0).integers(0, 128, ROWS * LENGTH).astype(np.int32)
position = np.tile(np.arange(LENGTH, dtype=np.int32), ROWS)

def run(params, config, tokens, position):
    def loss(params):
        hidden, _ = forward(params, config, tokens, position, causal_attend(ROWS), remat=True)
        logits = unembed(params, config, hidden)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], 1)
        return -chosen.mean(), logits
    (_, logits), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return logits, grads

for tied, meshes in ((True, ((2, 2, 2), (1, 8, 1))), (False, ((1, 2, 4),))):
    config = dataclasses.replace(BASE, tied=tied)
    init = jax.jit(init_params, static_argnums=0)
    params = jax.tree.map(lambda x: 4 * np.asarray(x), init(config, jax.random.key(0)))
    one = jax.jit(run, static_argnums=1)(params, config, tokens, position)
    for sizes in meshes:
        mesh = make_mesh(*sizes)
        shardings = param_shardings(param_shapes(config), mesh)
        placed = jax.device_put(params, shardings)
        kernel = placed["layers_0"]["down"]["kernel"]
        part = kernel.addressable_shards[0].data.size
        assert part * sizes[1] * sizes[2] == kernel.size, (sizes, part)
        with tempfile.TemporaryDirectory() as folder:  # each tensor goes to its place when read
            save_safetensors(placed, config, folder)
            loaded = load_safetensors(folder, config, shardings)
        for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(placed), strict=True):
            assert a.sharding == b.sharding
            np.testing.assert_array_equal(a, b)
        rows = row_sharding(mesh)
        program = jax.jit(run, static_argnums=1, out_shardings=(None, shardings))
        many = program(placed, config, jax.device_put(tokens, rows),
                       jax.device_put(position, rows))
        assert all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding == s, many[1], shardings)))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)
print("all equal")
"""


def test_eight_devices_give_the_logits_and_gradients_of_one():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT_DEVICES], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "all equal"
    # XLA says so when shardings of neighbouring operations do not fit each other.
    assert "rematerialization" not in done.stderr


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 4, 2), (2, 2, 2), (1, 1, 8), (1, 16, 4)])
def test_qwen_7b_is_spread_evenly(sizes):
    mesh = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3)
    ideal = 2 * parameter_count(QWEN7B) / (sizes[1] * sizes[2])
    params = param_shapes(QWEN7B)
    shardings = jax.tree.leaves(param_shardings(params, mesh))
    held = sum(
        prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(jax.tree.leaves(params), shardings, strict=True)
    )
    assert ideal <= held < 1.01 * ideal


def test_axes_that_do_not_divide_are_left_out():
    mesh = AbstractMesh((1, 2, 3), AXES, axis_types=(AxisType.Auto,) * 3)
    assert spec_of("layers_0/q/kernel", (64, 64), mesh) == PartitionSpec("fsdp", None)
    assert spec_of("layers_0/q/kernel", (63, 63), mesh) == PartitionSpec(None, "tensor")
    assert spec_of("embed/embedding", (9, 64), mesh) == PartitionSpec("tensor", None)
    with pytest.raises(UserError, match="no sharding rule matches parameter layers_0/new/matrix"):
        spec_of("layers_0/new/matrix", (8, 8), mesh)


def test_rules_are_data():
    mesh = AbstractMesh((1, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3)
    rules = ((r"/q/kernel$", PartitionSpec()), *RULES)
    assert spec_of("layers_0/q/kernel", (8, 8), mesh, rules) == PartitionSpec(None, None)
    assert spec_of("layers_0/k/kernel", (8, 8), mesh, rules) == PartitionSpec("fsdp", "tensor")


def test_a_cache_is_cut_by_heads_as_far_as_they_go():
    mesh = AbstractMesh((1, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3)
    axes = {4: ("fsdp", "tensor"), 2: "tensor", 3: None, 8: ("fsdp", "tensor")}
    for heads, names in axes.items():
        spec = cache_sharding(heads, mesh).spec
        assert (spec[1] if len(spec) else None) == names
    mesh = AbstractMesh((1, 2, 3), AXES, axis_types=(AxisType.Auto,) * 3)
    assert cache_sharding(2, mesh).spec[1] == "fsdp"
    mesh = AbstractMesh((1, 4, 1), AXES, axis_types=(AxisType.Auto,) * 3)
    assert prod(mesh.shape[name] for name in cache_sharding(4, mesh).spec[1]) == 4
    mesh = AbstractMesh((1, 4, 2), AXES, axis_types=(AxisType.Auto,) * 3)
    assert cache_sharding(4, mesh).spec[1] == "fsdp"  # 8 do not divide 4 heads, 4 do
    mesh = AbstractMesh((1, 8, 1), AXES, axis_types=(AxisType.Auto,) * 3)
    assert cache_sharding(4, mesh).spec == PartitionSpec()


def test_runs_of_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(UserError, match="one of 4 JAX processes"):
        make_mesh(data=-1)


def test_mesh_sizes():
    devices = jax.devices()[:1]
    mesh = make_mesh(data=-1, devices=devices)
    assert mesh.axis_names == AXES and mesh.devices.shape == (1, 1, 1)
    assert set(mesh.axis_types) == {AxisType.Auto}
    with pytest.raises(UserError, match="needs 2 devices but there are 1"):
        make_mesh(fsdp=2, devices=devices)
    with pytest.raises(UserError, match="are not positive"):
        make_mesh(fsdp=0, devices=devices)
