"""The C++ products: every size of what is left over, and every kind of instruction at hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from native import needs_native

from spark_jax.ops.cpu_products import Norm, multiply, pack, packed_shape

KINDS = [("float32", 2), ("bfloat16", 2), ("bfloat16", 1), ("bfloat16", 0)]


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rounded(x):
    return np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32))


@needs_native
@pytest.mark.parametrize("dtype,best", KINDS)
@pytest.mark.parametrize("inputs,outputs", [(1, 1), (37, 50), (64, 16), (128, 70), (66, 128)])
def test_products(dtype, best, inputs, outputs):
    """Rows and blocks of outputs that fill the registers and that do not; what lies behind a row
    or a block is not touched."""
    w = numbers(inputs, inputs, outputs) / inputs**0.5
    packed = pack(jnp.asarray(w), dtype)
    assert packed.shape == packed_shape(inputs, outputs, dtype)
    run = jax.jit(functools.partial(multiply, outputs=outputs, best=best))
    for rows in (*range(1, 12), 16, 17, 23, 32, 41):
        x = numbers(rows, rows, inputs)
        wanted = x.astype(np.float64) @ w
        if dtype == "bfloat16":
            wanted = rounded(x).astype(np.float64) @ rounded(w)
        np.testing.assert_allclose(run(x, packed), wanted, rtol=1e-5, atol=3e-6)


@needs_native
def test_large_products_share_their_work_among_threads():
    """The same numbers every time."""
    x, w = numbers(0, 40, 300), jnp.asarray(numbers(1, 300, 2000))
    for dtype in ("float32", "bfloat16"):
        packed = pack(w, dtype)
        first = np.asarray(multiply(x, packed, 2000))
        for _ in range(20):
            np.testing.assert_array_equal(multiply(x, packed, 2000), first)


@needs_native
@pytest.mark.parametrize("dtype,best", KINDS)
def test_rows_that_nobody_wants_are_zero_and_change_no_other(dtype, best):
    """Many outputs, so that a thread goes from blocks to blocks and fetches ahead."""
    w = numbers(1, 70, 1000)
    packed = pack(jnp.asarray(w), dtype)
    run = jax.jit(functools.partial(multiply, outputs=1000, best=best))
    for rows in (1, 9, 21, 40):
        x = numbers(rows, rows, 70)
        wanted = np.random.default_rng(rows).random(rows) < 0.6
        some = np.where(wanted[:, None], x, np.nan)  # what nobody wants is not even read
        some = np.asarray(run(some, packed, wanted_N=wanted))
        assert (some[~wanted] == 0).all()
        right = (rounded(x) if dtype == "bfloat16" else x).astype(np.float64)
        right = right @ (rounded(w) if dtype == "bfloat16" else w)
        np.testing.assert_allclose(some[wanted], right[wanted], rtol=1e-5, atol=2e-5)
        assert (np.asarray(run(x, packed, wanted_N=np.zeros(rows, bool))) == 0).all()


@needs_native
@pytest.mark.parametrize("dtype,best", KINDS)
@pytest.mark.parametrize(
    "before,after",
    [("norm", "bias"), ("norm", "nothing"), ("gate", "stream"), ("nothing", "stream")],
)
def test_what_stands_before_and_after_a_product(dtype, best, before, after):
    """Few rows, and so many that threads share them; gates so far from 0 that one side is lost."""
    inputs, outputs = 70, 50
    w, scale = numbers(1, inputs, outputs) / inputs**0.5, numbers(2, inputs)
    packed = pack(jnp.asarray(w), dtype)
    for rows in (9, 300):
        x = numbers(rows, rows, inputs * (2 if before == "gate" else 1))
        x[0, :4], x[0, inputs - 2 : inputs] = (200, -200, 30, -30), (90, -90)
        wanted_N = np.arange(rows) % 5 != 4
        known = {"bias": numbers(3, outputs), "stream": numbers(4, rows, outputs)}
        plus = known.get(after)
        norm = Norm(jnp.asarray(scale), 1e-5) if before == "norm" else None
        kinds = {"best": best, "norm": norm, "gated": before == "gate"}
        run = jax.jit(functools.partial(multiply, outputs=outputs, **kinds))
        out = run(x, packed, wanted_N=wanted_N, plus=plus)
        if before == "norm":
            x = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5) * scale
        if before == "gate":
            gate, up = np.split(x.astype(np.float64), 2, axis=-1)
            x = up * gate / (1 + np.exp(-gate))
        if dtype == "bfloat16":
            x = rounded(x.astype(np.float32)).astype(np.float64)
        right = x @ (rounded(w) if dtype == "bfloat16" else w) + (0 if plus is None else plus)
        # A last digit before rounding to bfloat16 may be another one after it.
        close = 2e-5 if dtype == "float32" or before == "nothing" else 4e-3
        error = np.abs(out - right) / np.abs(x).max(-1, keepdims=True)
        assert error[wanted_N].max() < close
        assert (np.asarray(out)[~wanted_N] == 0).all()


@needs_native
def test_weights_of_another_size_are_refused():
    packed = pack(jnp.zeros((64, 32)), "float32")
    with pytest.raises(ValueError, match=r"\(2, 64, 16\), not \(3, 64, 16\)"):
        multiply(jnp.zeros((2, 64)), packed, 48)
    with pytest.raises(ValueError, match="not"):
        multiply(jnp.zeros((2, 65)), packed, 32)
    with pytest.raises(ValueError, match="not"):
        multiply(jnp.zeros((2, 64)), packed, 32, gated=True)
    for x, norm in ((jnp.zeros((2, 129)), None), (jnp.zeros((2, 128)), Norm(jnp.ones(64), 1e-5))):
        with pytest.raises(ValueError, match="two halves and no norm"):
            multiply(x, packed, 32, norm=norm, gated=True)
    for more in ({"norm": Norm(jnp.ones(63), 1e-5)}, {"plus": jnp.ones((3, 32))}):
        with pytest.raises(ValueError, match="of 64 -> 32"):
            multiply(jnp.zeros((2, 64)), packed, 32, **more)
