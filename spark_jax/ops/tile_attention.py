"""Attention of decoding rows over tiles of pages: a tile that several rows share is read once and
multiplied with all their queries; parts are merged by log-sum-exp. cache/tiles.py makes tiles."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

OWN_STEP = 8  # tiles of one row looked at in one go
SHARED_STEP = 2  # tiles of several rows looked at in one go
_LOW = -1e30  # below any score, and finite: exp(_LOW - _LOW) is a number


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
) -> tuple[jax.Array, jax.Array]:
    """One query per row over the row's pages; the same result as `gathered_attention`.

    Query b looks at cache positions 0 … position_B[b]: the key of its own token must already be
    in its page.

    Args:
      tiles: `TileLists`, in which every page of a row up to that position is in one tile.

    Returns:
      out_BHC in the dtype of q, lse_BH float32. Rows in no tile: 0 and a very low number.
    """
    B, H, C = q_BHC.shape
    K = k_PSKC.shape[2]
    G = H // K
    # Row B stands for "no row": places of tiles that are not used write there.
    q_BKGC = jnp.pad(q_BHC.reshape(B, K, G, C) * C**-0.5, ((0, 1), (0, 0), (0, 0), (0, 0)))
    position_B = jnp.pad(position_B, (0, 1), constant_values=-1)
    merged = (
        jnp.full((B + 1, K, G), _LOW, jnp.float32),
        jnp.zeros((B + 1, K, G), jnp.float32),
        jnp.zeros((B + 1, K, G, C), jnp.float32),
    )
    for part, step in ((tiles.shared, SHARED_STEP), (tiles.own, OWN_STEP)):
        merged = _add_tiles(merged, q_BKGC, k_PSKC, v_PSKC, part, position_B, step)
    max_BKG, sum_BKG, out_BKGC = (x[:B] for x in merged)
    sum_BKG = jnp.maximum(sum_BKG, 1e-30)
    out_BHC = (out_BKGC / sum_BKG[..., None]).reshape(B, H, C)
    return out_BHC.astype(q_BHC.dtype), (max_BKG + jnp.log(sum_BKG)).reshape(B, H)


def _add_tiles(merged, q_BKGC, k_PSKC, v_PSKC, tiles, position_B, step: int):
    """Merges all tiles of one kind, `step` at a time, as many as there are."""
    S, K, C = k_PSKC.shape[1:]
    G, (U, W), R = q_BKGC.shape[2], tiles.page_UW.shape, tiles.row_UR.shape[1]
    step = min(step, U)
    X = W * S

    def some_tiles(i, merged):
        max_BKG, sum_BKG, out_BKGC = merged
        # The last step may reach back over tiles that were merged already.
        first = jnp.minimum(i * step, U - step)
        fresh_U = first + jnp.arange(step) >= i * step

        def cut(x):
            return jax.lax.dynamic_slice_in_dim(x, first, step)

        row_UR = jnp.where(fresh_U[:, None], cut(tiles.row_UR), q_BKGC.shape[0] - 1)
        # Tokens of each tile that each of its rows may see, from the tile's first one on.
        seen_UR = position_B[row_UR] + 1 - cut(tiles.start_U)[:, None]
        seen_UR = jnp.minimum(seen_UR, cut(tiles.tokens_U)[:, None])
        page_UW = cut(tiles.page_UW)
        k_UXKC = k_PSKC[page_UW].reshape(step, X, K, C)
        v_UXKC = v_PSKC[page_UW].reshape(step, X, K, C)
        M = R * G
        q_UKMC = q_BKGC[row_UR].swapaxes(1, 2).reshape(step, K, M, C)
        scores = jnp.einsum("ukmc,uxkc->ukmx", q_UKMC, k_UXKC, preferred_element_type=jnp.float32)
        visible = (jnp.arange(X) < jnp.repeat(seen_UR, G, axis=1)[..., None])[:, None]
        scores = jnp.where(visible, scores, _LOW)
        max_UKM = scores.max(-1)
        weights = jnp.where(visible, jnp.exp(scores - max_UKM[..., None]), 0.0)
        out_UKMC = jnp.einsum(
            "ukmx,uxkc->ukmc",
            weights.astype(v_UXKC.dtype),
            v_UXKC,
            preferred_element_type=jnp.float32,
        )

        def by_row(x):
            x = x.reshape(step, K, R, G, *x.shape[3:])
            return x.swapaxes(1, 2).reshape(step * R, K, G, *x.shape[4:])

        row_N, max_NKG = row_UR.reshape(-1), by_row(max_UKM)
        new_BKG = max_BKG.at[row_N].max(max_NKG)
        old_BKG, part_NKG = jnp.exp(max_BKG - new_BKG), jnp.exp(max_NKG - new_BKG[row_N])
        return (
            new_BKG,
            (sum_BKG * old_BKG).at[row_N].add(by_row(weights.sum(-1)) * part_NKG),
            (out_BKGC * old_BKG[..., None]).at[row_N].add(by_row(out_UKMC) * part_NKG[..., None]),
        )

    steps = (tiles.count + step - 1) // step
    return jax.lax.fori_loop(0, steps, some_tiles, merged)
