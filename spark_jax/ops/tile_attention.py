"""Attention of decoding rows over tiles of pages: a tile that several rows share is read once and
multiplied with all their queries; parts are merged by log-sum-exp. cache/tiles.py makes tiles."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from spark_jax.ops.gpu_kernels import LOW, Backend, tile_parts_pallas

OWN_STEP = 8  # tiles of one row looked at in one go
SHARED_STEP = 2  # tiles of several rows looked at in one go


class Tiles(NamedTuple):
    """Work list of one kind of tile (int32). Places that are not used have the row number B (no
    row), page 0 and no tokens."""

    page_UW: jax.Array  # pages of a tile
    row_UR: jax.Array  # rows that look at it
    start_U: jax.Array  # position of its first token along these paths
    tokens_U: jax.Array  # tokens of its pages, written or not
    count: jax.Array  # tiles in use, a number


class TileLists(NamedTuple):
    """All tiles of a decoding step."""

    shared: Tiles  # R = SHARED_ROWS
    own: Tiles  # R = 1


def tile_attention(
    q_BHC: jax.Array,
    k_PSKC: jax.Array,
    v_PSKC: jax.Array,
    tiles: TileLists,
    position_B: jax.Array,
    backend: Backend = "xla",
) -> tuple[jax.Array, jax.Array]:
    """One query per row over the row's pages; the same result as `gathered_attention`.

    Query b looks at cache positions 0 … position_B[b]: the key of its own token must already be
    in its page.

    Args:
      tiles: `TileLists`, in which every page of a row up to that position is in one tile.
      backend: with `xla` a loop over the tiles in use, else all tiles side by side.

    Returns:
      out_BHC in the dtype of q, lse_BH float32. Rows in no tile: 0 and a very low number.
    """
    B, H, C = q_BHC.shape
    K = k_PSKC.shape[2]
    G = H // K
    # Row B stands for "no row": places of tiles that are not used write there.
    q_BKGC = jnp.pad(q_BHC.reshape(B, K, G, C) * C**-0.5, ((0, 1), (0, 0), (0, 0), (0, 0)))
    position_B = jnp.pad(position_B, (0, 1), constant_values=-1)
    merged = Parts(
        jnp.full((B + 1, K, G), LOW, jnp.float32),
        jnp.zeros((B + 1, K, G), jnp.float32),
        jnp.zeros((B + 1, K, G, C), jnp.float32),
    )
    for part, step in ((tiles.shared, SHARED_STEP), (tiles.own, OWN_STEP)):
        if backend == "xla":
            merged = _add_in_a_loop(merged, q_BKGC, k_PSKC, v_PSKC, part, position_B, step)
        else:
            kernel = functools.partial(
                tile_parts_pallas, count=part.count, interpret=backend == "pallas_interpret"
            )
            merged = _add(merged, q_BKGC, k_PSKC, v_PSKC, part, position_B, kernel)
    max_BKG, sum_BKG, out_BKGC = (x[:B] for x in merged)
    sum_BKG = jnp.maximum(sum_BKG, 1e-30)
    out_BHC = (out_BKGC / sum_BKG[..., None]).reshape(B, H, C)
    return out_BHC.astype(q_BHC.dtype), (max_BKG + jnp.log(sum_BKG)).reshape(B, H)


class Parts(NamedTuple):
    """Softmax over some of the tokens: the highest score, the sum of exp(score - highest), and the
    values weighted by these."""

    max: jax.Array
    sum: jax.Array
    out: jax.Array


def _add(merged: Parts, q_BKGC, k_PSKC, v_PSKC, tiles: Tiles, position_B, look) -> Parts:
    """Merges some tiles. `look(q_UKMC, seen_UM, page_UW, k_PSKC, v_PSKC)` gives their parts, for
    the M = R * G queries of each."""
    (K, G, C), (U, R) = q_BKGC.shape[1:], tiles.row_UR.shape
    # Tokens of each tile that each of its rows may see, from the tile's first one on.
    seen_UR = position_B[tiles.row_UR] + 1 - tiles.start_U[:, None]
    seen_UR = jnp.minimum(seen_UR, tiles.tokens_U[:, None])
    q_UKMC = q_BKGC[tiles.row_UR].swapaxes(1, 2).reshape(U, K, R * G, C)
    parts = look(q_UKMC, jnp.repeat(seen_UR, G, axis=1), tiles.page_UW, k_PSKC, v_PSKC)

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


def _tile_parts(q_UKMC, seen_UM, page_UW, k_PSKC, v_PSKC) -> Parts:
    """Plain XLA: two batched products over gathered pages."""
    (U, W), (S, K, C) = page_UW.shape, k_PSKC.shape[1:]
    k_UXKC = k_PSKC[page_UW].reshape(U, W * S, K, C)
    v_UXKC = v_PSKC[page_UW].reshape(U, W * S, K, C)
    scores = jnp.einsum("ukmc,uxkc->ukmx", q_UKMC, k_UXKC, preferred_element_type=jnp.float32)
    visible = (jnp.arange(W * S) < seen_UM[..., None])[:, None]
    scores = jnp.where(visible, scores, LOW)
    max_UKM = scores.max(-1)
    weights = jnp.where(visible, jnp.exp(scores - max_UKM[..., None]), 0.0)
    out_UKMC = jnp.einsum(
        "ukmx,uxkc->ukmc",
        weights.astype(v_UXKC.dtype),
        v_UXKC,
        preferred_element_type=jnp.float32,
    )
    return Parts(max_UKM, weights.sum(-1), out_UKMC)


def _add_in_a_loop(
    merged: Parts, q_BKGC, k_PSKC, v_PSKC, tiles: Tiles, position_B, step: int
) -> Parts:
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
        some = some._replace(row_UR=row_UR)
        return _add(merged, q_BKGC, k_PSKC, v_PSKC, some, position_B, _tile_parts)

    return jax.lax.fori_loop(0, (tiles.count + step - 1) // step, some_tiles, merged)
