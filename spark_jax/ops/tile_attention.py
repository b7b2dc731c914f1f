"""Attention of decoding rows over tiles of pages: a tile that several rows share is read once and
multiplied with all their queries; parts are merged by log-sum-exp. cache/tiles.py makes tiles.

What a chunk of decoding steps itself adds is not in pages yet and is looked at apart (`recent`).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from spark_jax.ops.backend import GPU_KERNELS, Backend
from spark_jax.ops.bits import numbers
from spark_jax.ops.cpu_attention import tile_attention_native
from spark_jax.ops.gpu_kernels import LOW, tile_parts_pallas
from spark_jax.ops.paged_attention import gathered

# Tiles looked at in one go, (of several rows, of one row): as many as fit a core's cache, or, on an
# accelerator, enough to fill it (a choice that was not measured).
STEPS = {"cpu": (2, 8)}
WIDE_STEPS = (32, 128)
NOBODY = -1  # length of a row whose attention nobody wants


class Tiles(NamedTuple):
    """Work list of one kind of tile (int32). Places that are not used have the row number B (no
    row), page 0 and no tokens."""

    page_UW: jax.Array  # pages of a tile
    row_UR: jax.Array  # rows that look at it
    start_U: jax.Array  # position of its first token along these paths
    tokens_U: jax.Array  # tokens of its pages, written or not
    count: jax.Array  # a number; tiles from here on are not used


class TileLists(NamedTuple):
    """All tiles of a decoding step."""

    shared: Tiles  # R = SHARED_ROWS
    own: Tiles  # R = 1


class Parts(NamedTuple):
    """Softmax over some of the tokens: the highest score, the sum of exp(score - highest), and the
    values weighted by these (float32, by row, key head and query head of it)."""

    max: jax.Array
    sum: jax.Array
    out: jax.Array


def tile_attention(
    q_BHC: jax.Array,
    pages: tuple[jax.Array, jax.Array],
    tiles: TileLists,
    length_B: jax.Array,
    recent: tuple[jax.Array, jax.Array, jax.Array],
    backend: Backend = "xla",
) -> tuple[jax.Array, jax.Array]:
    """One query per row over the first `length_B` tokens of the row's pages, and over `recent`.

    Args:
      q_BHC: queries, not scaled.
      pages: of keys and of values, as `page_shapes` has them.
      tiles: `TileLists`, in which every page of a row up to that length is in one tile.
      length_B: tokens of each row in its pages; or NOBODY: then its result may be anything finite,
        and the C++ kernels leave it out.
      recent: (k_BKCX, v_BKXC, number of tokens): tokens that follow and are not in pages yet, the
        query's own among them.
      backend: with `xla` a loop over the tiles in use, with kernels all tiles side by side.

    Returns:
      out_BHC in the dtype of q, lse_BH float32. Rows that see nothing: 0 and a very low number.
    """
    B, H, C = q_BHC.shape
    k_BKCX, v_BKXC, _ = recent
    if k_BKCX.shape[2] != C or v_BKXC.shape[2:] != (k_BKCX.shape[3], C):
        raise ValueError(f"recent keys {k_BKCX.shape} and values {v_BKXC.shape} of {C} channels")
    if backend == "native":
        return tile_attention_native(q_BHC, *pages, tiles, length_B, recent)
    length_B = jnp.maximum(length_B, 0)
    K = pages[1].shape[2 if backend in GPU_KERNELS else 1]
    G = H // K
    q_BKGC = q_BHC.reshape(B, K, G, C) * C**-0.5
    merged = _recent_parts(q_BKGC, *recent)
    # Row B stands for "no row": places of tiles that are not used write there.
    q_BKGC = jnp.pad(q_BKGC, ((0, 1), (0, 0), (0, 0), (0, 0)))
    length_B = jnp.pad(length_B, (0, 1))
    merged = jax.tree.map(lambda x: jnp.pad(x, ((0, 1), *[(0, 0)] * (x.ndim - 1))), merged)
    steps = STEPS.get(jax.default_backend(), WIDE_STEPS)
    for part, step in zip(tiles, steps, strict=True):
        if backend == "xla":
            merged = _add_in_a_loop(merged, q_BKGC, pages, part, length_B, step)
        else:
            look = functools.partial(
                tile_parts_pallas,
                page_UW=part.page_UW,
                k_PSKC=pages[0],
                v_PSKC=pages[1],
                count=part.count,
                interpret=backend == "pallas_interpret",
            )
            merged = _add(merged, q_BKGC, part, length_B, look)
    max_BKG, sum_BKG, out_BKGC = (x[:B] for x in merged)
    sum_BKG = jnp.maximum(sum_BKG, 1e-30)
    out_BHC = (out_BKGC / sum_BKG[..., None]).reshape(B, H, C)
    return out_BHC.astype(q_BHC.dtype), (max_BKG + jnp.log(sum_BKG)).reshape(B, H)


def _add(merged: Parts, q_BKGC, tiles: Tiles, length_B, look) -> Parts:
    """Merges some tiles. `look(q_UKMC, seen_UM)` gives their parts, for the M = R * G queries of
    each."""
    (K, G, C), (U, R) = q_BKGC.shape[1:], tiles.row_UR.shape
    # Tokens of each tile that each of its rows may see, from the tile's first one on.
    seen_UR = length_B[tiles.row_UR] - tiles.start_U[:, None]
    seen_UR = jnp.minimum(seen_UR, tiles.tokens_U[:, None])
    q_UKMC = q_BKGC[tiles.row_UR].swapaxes(1, 2).reshape(U, K, R * G, C)
    parts = look(q_UKMC, jnp.repeat(seen_UR, G, axis=1))

    def by_row(x):
        x = x.reshape(U, K, R, G, *x.shape[3:])
        return x.swapaxes(1, 2).reshape(U * R, K, G, *x.shape[4:])

    row_N, (max_NKG, sum_NKG, out_NKGC) = tiles.row_UR.reshape(-1), map(by_row, parts)
    new_BKG = merged.max.at[row_N].max(max_NKG)
    old_BKG, part_NKG = jnp.exp(merged.max - new_BKG), jnp.exp(max_NKG - new_BKG[row_N])
    return Parts(
        new_BKG,
        (merged.sum * old_BKG).at[row_N].add(sum_NKG * part_NKG),
        (merged.out * old_BKG[..., None]).at[row_N].add(out_NKGC * part_NKG[..., None]),
    )


def _parts(q_UKMC, visible_UMX, k_UKXC, v_UKXC) -> Parts:
    """Two batched products."""
    scores = jnp.einsum("ukmc,ukxc->ukmx", q_UKMC, k_UKXC, preferred_element_type=jnp.float32)
    visible = visible_UMX[:, None]
    scores = jnp.where(visible, scores, LOW)
    max_UKM = scores.max(-1)
    weights = jnp.where(visible, jnp.exp(scores - max_UKM[..., None]), 0.0)
    out_UKMC = jnp.einsum(
        "ukmx,ukxc->ukmc",
        weights.astype(v_UKXC.dtype),
        v_UKXC,
        preferred_element_type=jnp.float32,
    )
    return Parts(max_UKM, weights.sum(-1), out_UKMC)


def _recent_parts(q_BKGC, k_BKCX, v_BKXC, number) -> Parts:
    """The first `number` of the tokens that are not in pages yet, for every row."""
    (B, _, G, _), X = q_BKGC.shape, k_BKCX.shape[3]
    visible_BMX = jnp.broadcast_to(jnp.arange(X) < number, (B, G, X))
    return _parts(q_BKGC, visible_BMX, numbers(k_BKCX).swapaxes(2, 3), numbers(v_BKXC))


def _add_in_a_loop(merged: Parts, q_BKGC, pages, tiles: Tiles, length_B, step: int) -> Parts:
    """Merges all tiles of one kind, `step` at a time, as many as there are."""
    U = tiles.page_UW.shape[0]
    step = min(step, U)

    def some_tiles(i, merged):
        # The last step may reach back over tiles that were merged already.
        first = jnp.minimum(i * step, U - step)
        fresh_U = first + jnp.arange(step) >= i * step
        some = Tiles(
            *(jax.lax.dynamic_slice_in_dim(x, first, step) for x in tiles[:-1]), tiles.count
        )
        row_UR = jnp.where(fresh_U[:, None], some.row_UR, q_BKGC.shape[0] - 1)
        k_UKXC, v_UKXC = (gathered(x, some.page_UW) for x in pages)

        def look(q_UKMC, seen_UM):
            visible_UMX = jnp.arange(k_UKXC.shape[2]) < seen_UM[..., None]
            return _parts(q_UKMC, visible_UMX, k_UKXC, v_UKXC)

        return _add(merged, q_BKGC, some._replace(row_UR=row_UR), length_B, look)

    return jax.lax.fori_loop(0, (tiles.count + step - 1) // step, some_tiles, merged)
