"""The trial that the kernels for GPUs have to stand before they are chosen unasked."""

import types

import jax
import jax.numpy as jnp
import pytest

from spark_jax.ops import gpu_trial, tile_attention
from spark_jax.ops.gpu_trial import Sizes, trial
from spark_jax.run import policy
from spark_jax.run.config import load_config

SIZES = Sizes(heads=4, kv_heads=2, channels=16, slots=16, tile_pages=2, group=4, dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_right_kernels_pass(dtype):
    assert trial(SIZES._replace(dtype=dtype), backend="pallas_interpret") == ""


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="there is no GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("slots", [16, 32])
def test_kernels_are_right_on_this_gpu(dtype, slots):
    assert trial(Sizes(12, 2, 128, slots, 128 // slots, 16, dtype)) == ""


def test_wrong_kernels_do_not(monkeypatch):
    right = tile_attention.tile_parts_pallas

    def forgets_a_tile(*arguments, count, **more):
        return right(*arguments, count=jnp.maximum(count - 1, 0), **more)

    monkeypatch.setattr(tile_attention, "tile_parts_pallas", forgets_a_tile)
    jax.clear_caches()
    assert "decoding differs" in trial(SIZES, backend="pallas_interpret")
    monkeypatch.undo()
    right_prefill = gpu_trial.paged_attention

    def looks_ahead(q, k, v, table, position, backend):
        return right_prefill(q, k, v, table, position + 1, backend)

    monkeypatch.setattr(gpu_trial, "paged_attention", looks_ahead)
    jax.clear_caches()
    assert "prefill differs" in trial(SIZES, backend="pallas_interpret")


def test_kernels_that_do_not_compile_leave_plain_xla(monkeypatch):
    """Here nothing compiles for a GPU: a run that believes to be on one goes on without."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model = types.SimpleNamespace(heads=4, kv_heads=2, head_dim=16, dtype="float32")
    here = policy.Policy(model, None, None, None)
    name, why = policy.sampler_backend(load_config("configs/toy.py"), here)
    assert name == "xla" and "they do not run here (" in why
    monkeypatch.setattr(gpu_trial, "trial", lambda *_: "")
    assert policy.sampler_backend(load_config("configs/toy.py"), here) == ("pallas", "")
