"""What the C++ attention does with heads before it looks at pages: norms, rotary positions, keys
and values to where they are kept. Against the same things done one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from native import needs_native
from test_tile_attention import forest

from spark_jax.cache.tiles import make_tiles
from spark_jax.ops.bits import bits, kept_as, numbers
from spark_jax.ops.cpu_attention import (
    Heads,
    decode_heads,
    paged_attention_native,
    prefill_heads,
    tile_attention_native,
)
from spark_jax.ops.rope import rope_tables, rotate
from spark_jax.ops.tile_attention import NOBODY

H, K, EPS, SLOTS = 6, 2, 1e-5, 16


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cached(seed, dtype, *shape):
    x = jnp.asarray(drawn(seed, *shape))
    return bits(x) if dtype == "bfloat16" else x


def made(seed, tokens, channels, normed):
    """Heads of some tokens; and their queries, keys and values, normed and turned apart."""
    x_NF = drawn(seed, tokens, (H + 2 * K) * channels)
    position_N = np.random.default_rng(seed).integers(0, 500, tokens)
    cos, sin = rope_tables(jnp.asarray(position_N), channels, 1e4)
    norms_2C = drawn(seed + 1, 2, channels) if normed else np.zeros(0, np.float32)
    q, k, v = np.split(x_NF.reshape(tokens, -1, channels), [H, H + K], axis=1)
    if normed:
        q, k = (
            x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * scale
            for x, scale in zip((q, k), norms_2C, strict=True)
        )
    heads = Heads(x_NF, cos, sin, jnp.asarray(norms_2C), EPS, H)
    return heads, (rotate(q, cos, sin), rotate(k, cos, sin), jnp.asarray(v))


def close(x, wanted, dtype="float32"):
    """bfloat16 may round another way where the number before it differs in its last digit."""
    x, wanted = (np.asarray(numbers(jnp.asarray(y)).astype(jnp.float32)) for y in (x, wanted))
    tolerance = 1e-2 if dtype == "bfloat16" else 1e-5
    np.testing.assert_allclose(x, wanted, rtol=tolerance, atol=tolerance)


@needs_native
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels", [24, 64])
def test_a_decoding_step(channels, dtype, normed):
    """Many rows, so that threads share them; one of them nobody wants."""
    rows, most, room, at = 21, 6, 16, 5
    tables = forest(np.random.default_rng(0), rows, most)
    pages = (
        cached(1, dtype, 1 + rows * most, K, channels, SLOTS),
        cached(2, dtype, 1 + rows * most, K, SLOTS, channels),
    )
    recent = (cached(3, dtype, rows, K, channels, room), cached(4, dtype, rows, K, room, channels))
    tiles = make_tiles(tables, rows, most, SLOTS, worth=1)
    length_B = np.array([len(table) * SLOTS - 3 for table in tables], np.int32)
    length_B[4] = NOBODY
    heads, (q, k, v) = made(5, rows, channels, normed)
    heads.x_NF[4] = np.nan
    run = jax.jit(functools.partial(decode_heads, heads))
    out_BF, lse_BH, kept = run(pages, tiles, length_B, (*recent, at + 1))

    wanted_B = length_B != NOBODY
    expected = (
        recent[0].at[wanted_B, ..., at].set(kept_as(recent[0], k)[wanted_B]),
        recent[1].at[wanted_B, :, at].set(kept_as(recent[1], v)[wanted_B]),
    )
    for x, wanted in zip(kept, expected, strict=True):
        close(x, wanted, dtype)
        assert x.dtype == wanted.dtype
        untouched = np.ones(room, bool)
        untouched[at] = False
        axis = 3 if x is kept[0] else 2
        np.testing.assert_array_equal(
            *(np.compress(untouched, np.asarray(y), axis) for y in (x, wanted))
        )
    out, lse = tile_attention_native(q, *pages, tiles, length_B, (*kept, at + 1))
    close(out_BF[wanted_B], out.reshape(rows, -1)[wanted_B])
    close(lse_BH[wanted_B], lse[wanted_B])
    assert (out_BF[4] == 0).all() and np.isfinite(lse_BH[4]).all()


@needs_native
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prefill(dtype, normed):
    """A token of slot -1, or of a page that is not there, is written nowhere."""
    B, T, channels, most = 3, 20, 24, 4
    pages = (
        cached(1, dtype, 1 + B * most, K, channels, SLOTS),
        cached(2, dtype, 1 + B * most, K, SLOTS, channels),
    )
    table_BW = 1 + np.random.default_rng(0).permutation(B * most).reshape(B, most)
    position_BT = np.arange(T) + np.array([[0], [11], [40]])
    slot_BT = np.take_along_axis(table_BW, position_BT // SLOTS, 1) * SLOTS + position_BT % SLOTS
    slot_BT[0, -2:] = -1, SLOTS * (1 + B * most)
    heads, (q, k, v) = made(5, B * T, channels, normed)
    run = jax.jit(functools.partial(prefill_heads, heads))
    out_NF, lse_NH, kept = run(pages, table_BW, position_BT, slot_BT.reshape(-1))

    there = (slot_BT >= 0) & (slot_BT < SLOTS * (1 + B * most))
    page_N, slot_N = np.divmod(slot_BT[there], SLOTS)
    there = there.reshape(-1)
    expected = (
        pages[0].at[page_N, :, :, slot_N].set(kept_as(pages[0], k)[there]),
        pages[1].at[page_N, :, slot_N].set(kept_as(pages[1], v)[there]),
    )
    for x, wanted in zip(kept, expected, strict=True):
        close(x, wanted, dtype)
    out, lse = paged_attention_native(
        q.reshape(B, T, H, channels), *kept, table_BW, jnp.asarray(position_BT)
    )
    close(out_NF, out.reshape(B * T, -1))
    close(lse_NH, lse.reshape(B * T, H))


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keys_and_values_are_written_in_place(dtype):
    """A copy of the recent tokens would cost more than the step, one of the pages more than the
    prefill."""
    heads, _ = made(0, 4, 32, False)
    pages = cached(1, dtype, 9, K, 32, SLOTS), cached(2, dtype, 9, K, SLOTS, 32)
    tiles = make_tiles([[1], [2], [3], [4]], 4, 2, SLOTS)
    step = functools.partial(decode_heads, heads, pages, tiles, np.full(4, 9, np.int32))
    recent = cached(3, dtype, 4, K, 32, 16), cached(4, dtype, 4, K, 16, 32)

    def steps(recent):
        def one(i, carry):
            recent, total = carry
            out_BF, _, recent = step((*recent, i + 1))
            return recent, total + out_BF

        return jax.lax.fori_loop(0, 9, one, (recent, jnp.zeros((4, H * 32))))

    def two_prefills(pages):
        table_BW, position_BT = np.array([[1, 2]]), np.arange(4)[None]
        for first in (16, 20):
            _, _, pages = prefill_heads(heads, pages, table_BW, position_BT, first + np.arange(4))
        return pages

    for run, kept in ((steps, recent), (two_prefills, pages)):
        text = jax.jit(run, donate_argnums=0).lower(kept).compile().as_text()
        copies = [line for line in text.splitlines() if " copy(" in line]
        shapes = [f"[{','.join(map(str, x.shape))}]" for x in kept]
        assert not [line for line in copies if any(shape in line for shape in shapes)]


@needs_native
def test_sizes_that_do_not_fit_are_refused():
    heads, _ = made(0, 4, 32, True)
    pages = cached(1, "float32", 9, K, 32, SLOTS), cached(2, "float32", 9, K, SLOTS, 32)
    tiles, length_B = make_tiles([[1]] * 4, 4, 2, SLOTS), np.full(4, 9, np.int32)
    recent = *(x[:4] for x in pages), 1
    decode_heads(heads, pages, tiles, length_B, recent)
    for wrong in (
        {"number": H + 1},
        {"norms_2C": heads.norms_2C[:1]},
        {"cos": heads.cos[:3]},
    ):
        with pytest.raises(ValueError, match="heads and 2 . 2 of 32 channels do not make"):
            decode_heads(heads._replace(**wrong), pages, tiles, length_B, recent)
    for length, some in ((length_B[:3], recent), (length_B, (*map(bits, recent[:2]), 1))):
        with pytest.raises(ValueError, match="have to be the same"):
            decode_heads(heads, pages, tiles, length, some)
    for number in (0, SLOTS + 1):
        with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="no place for a"):
            jax.block_until_ready(
                decode_heads(heads, pages, tiles, length_B, (*recent[:2], number))
            )
    with pytest.raises(ValueError, match="4 tokens, 3 positions, 4 slots"):
        prefill_heads(heads, pages, np.array([[1]]), np.arange(3)[None], np.arange(4))
