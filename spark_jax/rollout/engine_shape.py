"""The fixed shapes of the sampler: what is compiled, and how work is padded to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from spark_jax.cache.tiles import pages_of_tile
from spark_jax.models.config import ModelConfig
from spark_jax.ops.backend import GPU_KERNELS, Backend
from spark_jax.ops.gpu_trial import Sizes

GROUP = 16  # tokens of one path that a prefill computes side by side


def attention_sizes(config: ModelConfig, slots: int, dtype: str) -> Sizes:
    """Of a model's attention over pages of `slots` tokens, for choosing kernels."""
    heads = config.heads, config.kv_heads, config.head_dim
    return Sizes(*heads, slots, pages_of_tile(slots), GROUP, dtype)


@dataclasses.dataclass(frozen=True)
class EngineShape:
    """Fixed shapes of the sampler; every combination below is compiled once, before the start."""

    rows: int  # most rows of a batch
    slots: int  # tokens of a page
    pages: int  # pages of the pool
    path_tokens: int  # most tokens of a path
    chunk: int = 16  # decoding steps between two looks of the host
    prefill_tokens: int = 256  # most tokens of a prefill, all rows together
    share_prefix: bool = True  # decoding reads pages that rows share once (cache/tiles.py)
    backend: Backend = "xla"  # of attention (ops/backend.py)

    @property
    def row_ladder(self) -> tuple[int, ...]:
        """Sizes of a decode batch. Few rows cost nearly what a few more do (weights are read
        either way: 4 of SmolLM2 on a CPU 0.8 times what 8 do), many do not (16: 0.6 times 32)."""
        if self.rows <= 8:
            return _ladder(self.rows, 4, 2)
        return tuple(sorted({*_ladder(self.rows, 2, 3), -(-3 * self.rows // 4)}))

    @property
    def table_pages(self) -> int:
        """Width of the page table. One is enough: attention looks only at the pages in use."""
        return -(-(self.path_tokens + self.chunk) // self.slots)

    @property
    def tile_ladder(self) -> tuple[tuple[int, int], ...]:
        """Parts of the room for tiles that a decoding program has (cache/tiles.py, `trimmed`). The
        kernels for GPUs give all places results, used or not, which are merged: for paths far below
        their limit that would be most of a step. The others look at tiles in use only."""
        return ((8, 4), (1, 1)) if self.backend in GPU_KERNELS else ((1, 1),)

    @property
    def group_ladder(self) -> tuple[int, ...]:
        """Sizes of a prefill, in groups of `GROUP` tokens: what the rows of a round lack is cut
        into such groups, so that a long prompt beside short observations costs no padding. With
        the powers of two up to the largest, few programs, each of which reads all weights, make up
        any number of groups."""
        top = -(-self.prefill_tokens // GROUP)
        powers = {2**i for i in range(5, top.bit_length()) if 2**i < top}
        return tuple(sorted({*_ladder(min(top, 16), 2, 4), *powers, top}))


def _ladder(top: int, ratio: int, rungs: int) -> tuple[int, ...]:
    """Bucket sizes, the largest is `top`: e.g. top 64, ratio 4, 2 rungs -> (16, 64)."""
    return tuple(sorted({max(1, -(-top // ratio**i)) for i in range(rungs)}))


def bucket(ladder: tuple[int, ...], size: int) -> int:
    """The smallest rung that holds `size`."""
    return next(rung for rung in ladder if rung >= size)


def share_room(needs: Sequence[int], room: int) -> list[int]:
    """How many of `room` groups each row gets in this round, of those that it needs.

    Half of the room is for the row that came first, so that a long prompt goes on whatever comes
    after it. The rest goes to those that need least first: they can decode while it is computed.
    """
    given = [0] * len(needs)

    def give(i: int, most: int) -> None:
        given[i] += min(needs[i] - given[i], most)

    if needs:
        give(0, -(-room // 2))
    for i in sorted(range(len(needs)), key=lambda i: needs[i]):
        give(i, room - sum(given))
    return given
