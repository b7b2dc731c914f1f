"""Device side of the paged KV cache: one pair of arrays per layer, written in place.

`kv` is a tuple with the pages of keys and of values of each layer, whose shapes depend on the
backend of attention (`page_shapes`). It is donated to every program that writes it, so there is one
copy of it on the device at any time.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from spark_jax.models.config import ModelConfig
from spark_jax.ops.backend import Backend
from spark_jax.ops.bits import put
from spark_jax.ops.paged_attention import page_shapes

Kv = tuple[tuple[jax.Array, jax.Array], ...]


def init_kv(
    config: ModelConfig, pages: int, slots: int, dtype, sharding=None, backend: Backend = "xla"
) -> Kv:
    """An empty cache of `pages` pages of `slots` tokens."""
    keys, values = page_shapes(pages, slots, config.kv_heads, config.head_dim, backend)

    def zeros(shape):
        return jnp.zeros(shape, dtype, device=sharding)

    return tuple((zeros(keys), zeros(values)) for _ in range(config.layers))


def pinned(kv: Kv, place: NamedSharding | None) -> Kv:
    """Says in a program that the cache stays where it is: the compiler is free to lay results out
    in another way, which would cost a second cache and compilations."""
    return kv if place is None else jax.lax.with_sharding_constraint(kv, place)


@functools.partial(jax.jit, static_argnames="place", donate_argnums=0)
def copy_pages(
    kv: Kv, source_X: jax.Array, target_X: jax.Array, place: NamedSharding | None = None
) -> Kv:
    """Copies whole pages. Unused places of the two lists name page 0 (scratch) twice."""
    kv = jax.tree.map(lambda pages: put(pages, target_X, pages[source_X]), kv)
    return pinned(kv, place)
