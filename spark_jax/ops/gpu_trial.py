"""Whether the kernels for GPUs run on this machine, and rightly: asked before they are chosen."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from spark_jax.ops.backend import Backend, choose
from spark_jax.ops.paged_attention import gathered_attention, paged_attention
from spark_jax.ops.tile_attention import TileLists, Tiles, tile_attention

# float32 products in another order; bfloat16 has 8 bits.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}


class Sizes(NamedTuple):
    """Of the attention that is to be computed."""

    heads: int
    kv_heads: int
    channels: int  # of a head
    slots: int  # tokens of a page
    tile_pages: int  # pages of a tile (cache/tiles.py)
    group: int  # tokens of a path that a prefill computes side by side
    dtype: str  # of the cache


def pick(name: str, spread: bool, sizes: Sizes) -> tuple[Backend, str]:
    """What `rollout.backend` stands for here, and why if that is less than there could be: what
    `choose` says and, for kernels that nobody asked for, the trial."""
    backend, why = choose(name, spread, None if name == "auto" else sizes.channels)
    if name == "auto" and backend == "pallas":
        why = trial(sizes)
        if why:
            return "xla", f"attention by plain XLA instead of the kernels for GPUs: {why}"
    return backend, why


def trial(sizes: Sizes, backend: Backend = "pallas") -> str:
    """Decodes two rows that share a tile, and prefills both in groups as long as the sampler's, and
    holds it against the reference.

    Returns:
      "", or in one line why the kernels are not to be used.
    """
    try:
        return _compare(sizes, backend)
    except Exception as error:  # whatever the compiler says, the other way is open
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        return f"they do not run here ({reason})"


def _compare(sizes: Sizes, backend: Backend) -> str:
    heads, kv_heads, channels, slots, tile_pages, T, dtype = sizes
    # Pages 1 … W are the shared tile, W + 1 and W + 2 half a page each of row 0 and of row 1.
    W, rows = tile_pages, 2
    own = max(1, slots // 2)
    length_B = jnp.full(rows, W * slots + own)
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (W + 3, slots, kv_heads, channels)
    k, v = (jax.random.normal(key, shape).astype(dtype) for key in keys[:2])
    q_BTHC = jax.random.normal(keys[2], (rows, T, heads, channels)).astype(dtype)
    table_BW = jnp.stack([jnp.append(jnp.arange(1, W + 1), W + 1 + b) for b in range(rows)])
    position_BT = length_B[:, None] - jnp.arange(T, 0, -1)

    def pages(*tiles):  # of each tile, and page 0 where it has fewer
        return jnp.array([[*tile, *(W - len(tile)) * [0]] for tile in tiles])

    tiles = TileLists(
        shared=Tiles(
            pages(range(1, W + 1)), jnp.array([[0, 1] + 6 * [rows]]), jnp.array([0]),
            jnp.array([W * slots]), jnp.array(1),
        ),
        own=Tiles(
            pages([W + 1], [W + 2]), jnp.array([[0], [1]]), jnp.full(2, W * slots),
            jnp.full(2, slots), jnp.array(2),
        ),
    )  # fmt: skip
    nothing = jnp.zeros((rows, kv_heads, 1, channels), k.dtype)
    decoded, _ = jax.jit(tile_attention, static_argnames="backend")(
        q_BTHC[:, -1], (k, v), tiles, length_B, (nothing.swapaxes(2, 3), nothing, jnp.array(0)),
        backend=backend,
    )  # fmt: skip
    prefilled, _ = jax.jit(paged_attention, static_argnames="backend")(
        q_BTHC, k, v, table_BW, position_BT, backend=backend
    )
    with jax.default_matmul_precision("highest"):
        expected, _ = gathered_attention(q_BTHC, k, v, table_BW, position_BT)
    for what, got, right in (
        ("decoding", decoded, expected[:, -1]),
        ("prefill", prefilled, expected),
    ):
        gap = float(jnp.max(jnp.abs(got.astype(jnp.float32) - right.astype(jnp.float32))))
        if not gap <= TOLERANCE[dtype]:
            return f"{what} differs from the reference by {gap:.2g} here"
    return ""
