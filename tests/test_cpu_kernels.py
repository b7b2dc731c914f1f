"""The C++ kernels: sizes and types that the other tests of attention leave out, where they are
chosen, and what is said where they cannot be."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from native import arranged, needs_native
from test_tile_attention import attend_pages, forest

from spark_jax.cache.tiles import make_tiles
from spark_jax.ops import backend, cpu_kernels
from spark_jax.ops.paged_attention import gathered_attention, paged_attention
from spark_jax.types import UserError

reference = jax.jit(gathered_attention)


def case(seed, heads, kv_heads, channels, dtype, rows=20, most=40, slots=16):
    """Rows of one tree, of different lengths, and twelve rows of padding."""
    rng = np.random.default_rng(seed)
    tables = forest(rng, rows, most, trees=1)
    kv = rng.normal(size=(2, 1 + rows * most, slots, kv_heads, channels)).astype(np.float32)
    k, v = (jnp.asarray(x, dtype) for x in kv)
    q = 3 * rng.normal(size=(32, heads, channels)).astype(np.float32)
    table_BW, length_B = np.zeros((32, most), np.int32), np.zeros(32, np.int32)
    for b, table in enumerate(tables):
        table_BW[b, : len(table)] = table
        length_B[b] = rng.integers(1, len(table) * slots + 1)
    return q, k, v, make_tiles(tables, 32, most, slots, worth=1), table_BW, length_B


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "channels,heads,kv_heads",
    [(8, 5, 1), (24, 9, 3), (32, 4, 2), (64, 9, 3), (80, 4, 2), (128, 14, 2)],
)
def test_sizes_and_types(dtype, channels, heads, kv_heads):
    """Few queries of a tile and many, heads that fill vector registers and heads that do not."""
    q, k, v, tiles, table_BW, length_B = case(channels, heads, kv_heads, channels, dtype)
    assert tiles.shared.count > 0 and tiles.own.count > 0
    used = length_B > 0
    wide = [x.astype(jnp.float32) for x in (k, v)]  # so the reference does not round weights
    attend = jax.jit(functools.partial(attend_pages, backend="native"))
    out, lse = attend(q, k, v, tiles, length_B)
    wanted, wanted_lse = reference(q[:, None], *wide, table_BW, length_B[:, None] - 1)
    np.testing.assert_allclose(out[used], wanted[used, 0], rtol=3e-5, atol=6e-6)
    np.testing.assert_allclose(lse[used], wanted_lse[used, 0], rtol=3e-5)
    assert (out[~used] == 0).all() and np.isfinite(lse).all()

    position_BT = np.maximum(length_B[:, None] - 1 - np.arange(5), 0).astype(np.int32)
    q = 3 * np.random.default_rng(1).normal(size=(32, 5, heads, channels)).astype(np.float32)
    out, lse = paged_attention(q, *arranged(k, v, "native"), table_BW, position_BT, "native")
    wanted, wanted_lse = reference(q, *wide, table_BW, position_BT)
    np.testing.assert_allclose(out[used], wanted[used], rtol=3e-5, atol=6e-6)
    np.testing.assert_allclose(lse[used], wanted_lse[used], rtol=3e-5)


@needs_native
def test_scores_far_apart_lose_nothing():
    """Sharp softmax, and scores that would overflow without the highest one taken off."""
    q, k, v, tiles, table_BW, length_B = case(0, 4, 2, 16, "float32")
    for scale in (1e-3, 30.0, 1e4):
        attend = jax.jit(functools.partial(attend_pages, backend="native"))
        out, lse = attend(scale * q, k, v, tiles, length_B)
        wanted, wanted_lse = reference(
            scale * q[:20, None], k, v, table_BW[:20], length_B[:20, None] - 1
        )
        np.testing.assert_allclose(out[:20], wanted[:, 0], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(lse[:20], wanted_lse[:, 0], rtol=1e-5)


@needs_native
def test_the_same_numbers_every_time():
    """Threads take tiles as they come, but sums have a fixed order."""
    q, k, v, tiles, _, length_B = case(3, 9, 3, 64, "float32")
    attend = jax.jit(functools.partial(attend_pages, backend="native"))
    first = [np.asarray(x) for x in attend(q, k, v, tiles, length_B)]
    for _ in range(20):
        for x, y in zip(attend(q, k, v, tiles, length_B), first, strict=True):
            np.testing.assert_array_equal(x, y)


def test_auto_takes_them_where_they_can_be_built(monkeypatch):
    monkeypatch.setattr(cpu_kernels, "load", lambda: "")
    assert backend.choose("auto", spread=False) == ("native", "")
    assert backend.choose("auto", spread=True) == ("xla", "")
    assert backend.choose("xla", spread=False) == ("xla", "")
    with pytest.raises(UserError, match="native is for one device; use xla"):
        backend.choose("native", spread=True)
    monkeypatch.setattr(cpu_kernels, "load", lambda: "there is no C++ compiler")
    name, why = backend.choose("auto", spread=False)
    assert name == "xla" and why.endswith("slower than the C++ kernels: there is no C++ compiler")
    with pytest.raises(UserError, match="native cannot be built: there is no C.. compiler"):
        backend.choose("native", spread=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert backend.choose("auto", spread=False) == ("pallas", "")
    assert backend.choose("auto", spread=True) == ("xla", "")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert backend.choose("auto", spread=False) == ("xla", "")


def test_the_kernels_for_gpus_are_refused_where_they_cannot_run(monkeypatch):
    for here in ("cpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda here=here: here)
        with pytest.raises(UserError, match=f"is for GPUs, and JAX runs on {here.upper()} here"):
            backend.choose("pallas", spread=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert backend.choose("pallas", spread=False, head_dim=64) == ("pallas", "")
    for name in ("pallas", "pallas_interpret"):
        with pytest.raises(UserError, match=f"{name} is for one device; use xla"):
            backend.choose(name, spread=True)
    for name, channels in (("pallas", 96), ("pallas_interpret", 8)):
        with pytest.raises(UserError, match=f"and this model's have {channels}; use auto or xla"):
            backend.choose(name, spread=False, head_dim=channels)


@pytest.mark.parametrize(
    "compiler,said",
    [(None, "there is no C++ compiler"), ("echo Oh no. >&2; exit 1", "failed: Oh no.")],
)
def test_a_build_that_fails_is_told(tmp_path, compiler, said):
    """In a process of its own, with an empty cache and nothing else on the PATH."""
    if compiler:
        (tmp_path / "c++").write_text(f"#!/bin/sh\n{compiler}\n")
        (tmp_path / "c++").chmod(0o755)
    code = "from spark_jax.ops import cpu_kernels; print(cpu_kernels.load())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": str(tmp_path), "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said in done.stdout
    assert not list(tmp_path.rglob("*.so"))
