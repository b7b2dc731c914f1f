"""Prefill attention: both implementations against the readable reference."""

import functools

import jax
import numpy as np
import pytest
from native import NATIVE

from spark_jax.ops.paged_attention import gathered_attention, paged_attention


@pytest.mark.parametrize("heads,kv_heads", [(4, 2), (6, 1), (7, 1), (3, 3), (32, 1)])
@pytest.mark.parametrize("backend", ["xla", "pallas_interpret", NATIVE])
@pytest.mark.parametrize("slots,T", [(16, 5), (16, 24), (128, 3), (256, 1)])
def test_paged_attention_is_that_of_the_reference(backend, heads, kv_heads, slots, T):
    rng = np.random.default_rng(T)
    B, W, C = 3, max(1, 320 // slots), 16
    pages = 1 + B * W
    k, v = rng.normal(size=(2, pages, slots, kv_heads, C)).astype(np.float32)
    q = 3 * rng.normal(size=(B, T, heads, C)).astype(np.float32)
    table_BW = 1 + rng.permutation(B * W).reshape(B, W).astype(np.int32)
    start_B = rng.integers(0, W * slots - T, size=B)
    position_BT = (start_B[:, None] + np.arange(T)).astype(np.int32)
    position_BT[-1] = 0  # a row of padding
    wanted = jax.jit(gathered_attention)(q, k, v, table_BW, position_BT)
    attend = jax.jit(functools.partial(paged_attention, backend=backend))
    for got, want in zip(attend(q, k, v, table_BW, position_BT), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=3e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_lowers_for_a_gpu(dtype):
    q = jax.ShapeDtypeStruct((4, 64, 12, 128), dtype)
    kv = jax.ShapeDtypeStruct((200, 16, 2, 128), dtype)
    table = jax.ShapeDtypeStruct((4, 40), np.int32)
    position = jax.ShapeDtypeStruct((4, 64), np.int32)
    attend = jax.jit(functools.partial(paged_attention, backend="pallas"))
    unchecked = jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
    program = jax.export.export(attend, platforms=["cuda"], disabled_checks=[unchecked])(
        q, kv, kv, table, position
    )
    assert program.mlir_module().count("__gpu$xla.gpu.triton") == 1


def test_the_kernel_does_not_cut_float32_to_tf32():
    """As Triton does with a product that names no precision."""
    q, kv = np.zeros((1, 16, 2, 16), np.float32), np.zeros((2, 16, 1, 16), np.float32)
    table, position = np.zeros((1, 8), np.int32), np.zeros((1, 16), np.int32)
    attend = functools.partial(paged_attention, backend="pallas")
    program = str(jax.make_jaxpr(attend)(q, kv, kv, table, position))
    assert program.count("dot_general[") == 2
    assert program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 2
