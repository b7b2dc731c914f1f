"""Rotary position embedding, in the half-split form that Llama and Qwen checkpoints use.

Su et al., "RoFormer" (arXiv 2104.09864), Eq. 34. Channel c of a head is paired with channel
c + C/2, both are turned by position * theta^(-2c/C).
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Frequency scaling of Llama 3.1 and later (`rope_type: llama3` in their config.json)."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


def inverse_frequencies(
    head_dim: int, theta: float, scaling: Llama3Scaling | None = None
) -> np.ndarray:
    """Radians per position of each channel pair, [C/2] float32.

    With `scaling`, wavelengths longer than original_max_position / low_freq_factor are stretched
    by `factor`, those shorter than original_max_position / high_freq_factor are kept, and those
    between are interpolated linearly in the number of turns.
    """
    inverse = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is not None:
        turns = scaling.original_max_position * inverse / (2 * math.pi)
        spread = scaling.high_freq_factor - scaling.low_freq_factor
        keep = np.clip((turns - scaling.low_freq_factor) / spread, 0.0, 1.0)
        inverse = inverse * (keep + (1.0 - keep) / scaling.factor)
    return inverse.astype(np.float32)


def rope_tables(
    position_N: jax.Array, head_dim: int, theta: float, scaling: Llama3Scaling | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [N, 1, C/2] float32 of integer positions [N]."""
    inverse = jnp.asarray(inverse_frequencies(head_dim, theta, scaling))

    def tables(position_N):
        angle = position_N.astype(jnp.float32)[:, None, None] * inverse
        return jnp.cos(angle), jnp.sin(angle)

    def once(position_N):
        # XLA's CPU compiler would compute them again for each head of each layer, where it merges
        # them into the rotations. What comes out of a branch is not merged with anything.
        shape = (position_N.shape[0], 1, inverse.shape[0])
        none = (jnp.zeros(shape, inverse.dtype),) * 2
        return jax.lax.cond(position_N[0] >= 0, tables, lambda _: none, position_N)

    return jax.lax.platform_dependent(position_N, cpu=once, default=tables)


def rotate(x_NHC: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns each pair of channels of x [N, H, C] by its angle; computed in float32."""
    low, high = jnp.split(x_NHC.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
    return turned.astype(x_NHC.dtype)
