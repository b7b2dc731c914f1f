"""Sampling a token per row, with keys that depend on who samples and never on when."""

from __future__ import annotations

import jax
import jax.numpy as jnp

BLOCK = 256  # tokens of the vocabulary that one running sum covers


def sample_tokens(
    logits_BV: jax.Array, key_B2: jax.Array, position_B: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One sample per row from softmax(logits / temperature).

    Two uniform numbers a row: the first picks a block of the vocabulary by its probability, the
    second a token in the block. (The Gumbel trick draws a number per vocabulary entry instead: on
    a CPU that takes longer than the rest of a small model.)

    Args:
      logits_BV: float32.
      key_B2: uint32, raw key data of each row's own identity.
      position_B: the position along the path of the token that is being sampled; it is folded
        into the key, so the noise of a token depends on nothing else.
      temperature: scalar; 0 means greedy (log-probabilities are then those at temperature 1).

    Returns:
      token_B int32 and logprob_B float32, of the very distribution that was sampled from.
    """
    B, V = logits_BV.shape
    scaled_BV = logits_BV / jnp.where(temperature > 0, temperature, 1.0)
    best_B = scaled_BV.max(axis=-1)

    def draw(key_2, position):
        key = jax.random.fold_in(jax.random.wrap_key_data(key_2), position)
        return jax.random.uniform(key, (2,))

    uniform_B2 = jax.vmap(draw)(key_B2, position_B)
    weight_BV = jnp.exp(scaled_BV - best_B[:, None])
    weight_BNX = jnp.pad(weight_BV, ((0, 0), (0, -V % BLOCK))).reshape(B, -1, BLOCK)
    block_BN = weight_BNX.sum(axis=-1)
    block_B = _invert(block_BN, uniform_B2[:, 0])
    inside_BX = jnp.take_along_axis(weight_BNX, block_B[:, None, None], axis=1)[:, 0]
    sampled_B = block_B * BLOCK + _invert(inside_BX, uniform_B2[:, 1])

    token_B = jnp.where(temperature > 0, sampled_B, jnp.argmax(scaled_BV, axis=-1))
    chosen_B = jnp.take_along_axis(scaled_BV, token_B[:, None], axis=-1)[:, 0]
    return token_B.astype(jnp.int32), chosen_B - best_B - jnp.log(block_BN.sum(axis=-1))


def _invert(weight_BX: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """Index drawn with probability weight / sum of weights: where the running sum passes
    uniform * sum. Never one of weight 0."""
    sum_BX = jnp.cumsum(weight_BX, axis=-1)
    passed_BX = sum_BX > uniform_B[:, None] * sum_BX[:, -1:]
    # Rounding may leave none (uniform * sum = sum): then the heaviest.
    return jnp.argmax(jnp.where(passed_BX.any(axis=-1, keepdims=True), passed_BX, weight_BX), -1)
