"""bfloat16 kept as bits. XLA for CPUs reads and writes single rows of a bfloat16 array by way of a
float32 copy of all of it; of a uint16 array it touches those rows alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def bits(x: jax.Array) -> jax.Array:
    """The bits of bfloat16 numbers, uint16."""
    return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)


def numbers(x: jax.Array) -> jax.Array:
    """`x`, or the bfloat16 numbers whose bits it is."""
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def kept_as(x: jax.Array, values: jax.Array) -> jax.Array:
    """`values` in the type of `x`; numbers become bits if `x` is."""
    if x.dtype == jnp.uint16 and values.dtype != jnp.uint16:
        values = bits(values)
    return values.astype(x.dtype)


def put(x: jax.Array, index: Any, values: jax.Array) -> jax.Array:
    """`x.at[index].set(values)`, kept as `x` is; in place when `x` is donated."""
    return x.at[index].set(kept_as(x, values))
