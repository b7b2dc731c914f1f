"""Prefill attention: both implementations against the readable reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from native import NATIVE, arranged

from spark_jax.ops.bits import bits
from spark_jax.ops.paged_attention import (
    gathered_attention,
    page_shapes,
    paged_attention,
    slots_of,
    write_pages,
)


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
    pages = arranged(k, v, backend)
    for got, want in zip(attend(q, *pages, table_BW, position_BT), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=3e-6)


@pytest.mark.parametrize("backend", ["xla", "pallas_interpret", NATIVE])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint16"])
def test_new_tokens_are_written_where_they_belong(backend, dtype):
    """And nothing else is; bfloat16 may be kept as bits. Several tokens may go to one place of page
    0, which nobody reads."""
    pages, slots, K, C, N = 40, 16, 3, 32, 500
    rng = np.random.default_rng(0)
    k, v = (np.array(jnp.asarray(x, dtype)) for x in rng.integers(0, 99, (2, pages, slots, K, C)))
    k_new, v_new = rng.normal(size=(2, N, K, C)).astype(np.float32)
    slot_N = rng.permutation(np.arange(slots, pages * slots))[:N].astype(np.int32)
    slot_N[::9] %= slots
    before = arranged(jnp.asarray(k), jnp.asarray(v), backend)
    assert tuple(x.shape for x in before) == page_shapes(pages, slots, K, C, backend)
    assert slots_of(before[1], backend) == slots
    write = jax.jit(functools.partial(write_pages, backend=backend), donate_argnums=0)
    after = write(before, jnp.asarray(k_new), jnp.asarray(v_new), slot_N)
    for x, new in ((k, k_new), (v, v_new)):
        new = bits(jnp.asarray(new)) if dtype == "uint16" else jnp.asarray(new, dtype)
        x.reshape(pages * slots, K, C)[slot_N] = new
    for got, want in zip(after, arranged(k, v, backend), strict=True):
        np.testing.assert_array_equal(got[1:], want[1:])


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
