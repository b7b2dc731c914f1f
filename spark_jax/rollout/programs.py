"""The two programs of the sampler, as pure functions: prefill of prompt tokens and a chunk of
decoding. Both read and write the paged cache; both are jitted with the cache donated."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from spark_jax.cache.kv import Kv, pinned
from spark_jax.models.config import ModelConfig
from spark_jax.models.layouts import FEW_ROWS, Layout, Params
from spark_jax.models.packed import forward_packed, unembed_packed
from spark_jax.models.transformer import forward, unembed
from spark_jax.ops.backend import Backend
from spark_jax.ops.bits import put
from spark_jax.ops.cpu_attention import decode_heads, prefill_heads
from spark_jax.ops.cpu_products import LANES
from spark_jax.ops.paged_attention import paged_attention, slots_of, write_pages
from spark_jax.ops.sampling import sample_tokens
from spark_jax.ops.tile_attention import NOBODY, TileLists, tile_attention


class Weights(NamedTuple):
    """The parameters in the orders that the programs want (models/layouts.py, models/packed.py)."""

    plain: Params | None = None
    turned: Params | None = None
    packed: Params | None = None  # those of the C++ kernels, which need no others

    def of(self, rows: int) -> tuple[Params, Layout]:
        """What a program of so many rows uses, without these kernels."""
        if self.turned is not None and rows <= FEW_ROWS:
            return self.turned, "turned"
        return self.plain, "plain"


class DecodeRows(NamedTuple):
    """State of the rows of one decode batch (arrays of int32 unless said otherwise)."""

    token_B: jax.Array  # last token of the path, not in the cache yet
    position_B: jax.Array  # its position along the path = tokens in the cache
    left_B: jax.Array  # response tokens still allowed; 0 = the row is not active
    stop_B: jax.Array  # state of the stop automaton
    key_B2: jax.Array  # uint32, identity of the row
    table_BW: jax.Array  # pages of the row
    tiles: TileLists  # the same pages once more, cut so that what rows share is read once


class Decoded(NamedTuple):
    token_BX: jax.Array  # sampled tokens, -1 where the row was not active any more
    logprob_BX: jax.Array  # float32
    stop_B: jax.Array


def _slots(table_BW, position_BT, valid_BT, slots: int):
    """Flat slot numbers of tokens; those that are not valid go to scratch page 0."""
    page_BT = jnp.take_along_axis(table_BW, position_BT // slots, axis=1)
    flat_BT = page_BT * slots + position_BT % slots
    return jnp.where(valid_BT, flat_BT, position_BT % slots).reshape(-1)


@functools.partial(jax.jit, static_argnames=("config", "backend", "place"), donate_argnames=("kv",))
def prefill(
    weights: Weights,
    kv: Kv,
    token_GT,
    start_G,
    count_G,
    table_GW,
    *,
    config: ModelConfig,
    backend: Backend = "xla",
    place: NamedSharding | None = None,
) -> Kv:
    """Writes keys and values of groups of tokens into the pages: `count_G` tokens of one path each
    at positions start_G …, several groups of a path if it has more tokens than a group.

    No logits are computed: the last token of a prompt is fed by the first decoding step.
    `place`: of a cache that is spread over devices.
    """
    G, T = token_GT.shape
    slots = slots_of(kv[0][1], backend)
    offset_T = jnp.arange(T)
    valid_GT = offset_T < count_G[:, None]
    position_GT = jnp.where(valid_GT, start_G[:, None] + offset_T, 0)
    slot_N = _slots(table_GW, position_GT, valid_GT, slots)
    token_N, position_N, valid_N = (x.reshape(-1) for x in (token_GT, position_GT, valid_GT))
    if backend == "native":
        slot_N = jnp.where(valid_N, slot_N, -1)

        def attend_heads(heads, pages):
            out_NF, _, pages = prefill_heads(heads, pages, table_GW, position_GT, slot_N)
            return out_NF, pages

        params = weights.packed
        return forward_packed(params, config, token_N, position_N, attend_heads, kv, valid_N)[1]

    def attend(q_NHC, k_NKC, v_NKC, kv_layer):
        kv_layer = write_pages(kv_layer, k_NKC, v_NKC, slot_N, backend)
        q_GTHC = q_NHC.reshape(G, T, *q_NHC.shape[1:])
        out_GTHC, _ = paged_attention(q_GTHC, *kv_layer, table_GW, position_GT, backend)
        return out_GTHC.reshape(q_NHC.shape), kv_layer

    params, layout = weights.of(G * T)
    kv = forward(params, config, token_N, position_N, attend, kv, layout=layout)[1]
    return pinned(kv, place)


@functools.partial(
    jax.jit,
    static_argnames=("config", "chunk", "end_of_turn", "backend", "place"),
    donate_argnames="kv",
)
def decode_chunk(
    weights: Weights,
    kv: Kv,
    rows: DecodeRows,
    stop_table_QV,
    temperature,
    *,
    config: ModelConfig,
    chunk: int,
    end_of_turn: int,
    backend: Backend = "xla",
    place: NamedSharding | None = None,
) -> tuple[Kv, Decoded]:
    """Samples up to `chunk` tokens per row without a look from the host.

    A row ends at the token that completes a stop pattern, at the end-of-turn token, or when its
    allowance is used up. From a quarter of the chunk on, the loop ends early when an eighth of the
    rows have ended: others can have their places, and every row a look at its environment.

    The cache is written after the loop, not in it: the tokens of this chunk are carried along.
    `place`: of a cache that is spread over devices.
    """
    B = rows.token_B.shape[0]
    slots = slots_of(kv[0][1], backend)
    accept = stop_table_QV.shape[0] - 1
    begin_B = rows.position_B

    started = jnp.sum(rows.left_B > 0)

    def running(carry):
        i, _, rows, _ = carry
        active = jnp.sum(rows.left_B > 0)
        enough = (i >= chunk // 4) & (8 * (started - active) >= B)
        return (i < chunk) & (active > 0) & ~enough

    def look(rows, recent, i, active_B):
        """Logits of the rows' next tokens, and `recent` with this step's keys and values."""
        length_B = jnp.where(active_B, begin_B, NOBODY)
        layers = tuple(zip(recent, kv, strict=True))
        if backend == "native":

            def attend_heads(heads, layer):
                (k_BKCX, v_BKXC), pages = layer
                out_BF, _, new = decode_heads(
                    heads, pages, rows.tiles, length_B, (k_BKCX, v_BKXC, i + 1)
                )
                return out_BF, new

            x_BD, recent = forward_packed(
                weights.packed,
                config,
                rows.token_B,
                rows.position_B,
                attend_heads,
                layers,
                active_B,
            )
            return unembed_packed(weights.packed, config, x_BD, active_B), recent

        def attend(q_BHC, k_BKC, v_BKC, layer):
            (k_BKCX, v_BKXC), pages = layer
            k_BKCX = put(k_BKCX, np.s_[..., i], k_BKC)
            v_BKXC = put(v_BKXC, np.s_[:, :, i], v_BKC)
            out_BHC, _ = tile_attention(
                q_BHC, pages, rows.tiles, length_B, (k_BKCX, v_BKXC, i + 1), backend
            )
            return out_BHC, (k_BKCX, v_BKXC)

        params, layout = weights.of(B)
        hidden_BD, recent = forward(
            params, config, rows.token_B, rows.position_B, attend, layers, layout=layout
        )
        return unembed(params, config, hidden_BD, layout), recent

    def step(carry):
        i, recent, rows, out = carry
        active_B = rows.left_B > 0
        logits_BV, recent = look(rows, recent, i, active_B)
        if place is not None:  # one exchange, not one for each step of sampling
            whole = NamedSharding(place.mesh, PartitionSpec())
            logits_BV = jax.lax.with_sharding_constraint(logits_BV, whole)
        token_B, logprob_B = sample_tokens(logits_BV, rows.key_B2, rows.position_B + 1, temperature)
        stop_B = jnp.where(active_B, stop_table_QV[rows.stop_B, token_B], rows.stop_B)
        ended_B = (stop_B == accept) | (token_B == end_of_turn)
        out = Decoded(
            out.token_BX.at[:, i].set(jnp.where(active_B, token_B, -1)),
            out.logprob_BX.at[:, i].set(jnp.where(active_B, logprob_B, 0.0)),
            stop_B,
        )
        rows = rows._replace(
            token_B=jnp.where(active_B, token_B, rows.token_B),
            position_B=rows.position_B + active_B,
            left_B=jnp.where(active_B & ended_B, 0, rows.left_B - active_B),
            stop_B=stop_B,
        )
        return i + 1, recent, rows, out

    out = Decoded(
        jnp.full((B, chunk), -1, jnp.int32), jnp.zeros((B, chunk), jnp.float32), rows.stop_B
    )
    room = -(-chunk // LANES) * LANES if backend == "native" else chunk  # whole registers
    nothing_BKXC = jnp.zeros((B, config.kv_heads, room, config.head_dim), kv[0][0].dtype)
    recent = ((nothing_BKXC.swapaxes(2, 3), nothing_BKXC),) * config.layers
    _, recent, rows, out = jax.lax.while_loop(running, step, (0, recent, rows, out))

    offset_X = jnp.arange(chunk)
    position_BX = begin_B[:, None] + offset_X
    valid_BX = position_BX < rows.position_B[:, None]
    slot_N = _slots(rows.table_BW, position_BX, valid_BX, slots)

    def written(pages, new):
        k_BKCX, v_BKXC = new
        k_NKC, v_NKC = (
            x_BXKC.reshape(-1, config.kv_heads, config.head_dim)
            for x_BXKC in (
                k_BKCX[..., :chunk].transpose(0, 3, 1, 2),
                v_BKXC[:, :, :chunk].swapaxes(1, 2),
            )
        )
        return write_pages(pages, k_NKC, v_NKC, slot_N, backend)

    return pinned(tuple(map(written, kv, recent)), place), out
