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
    divisor = jnp.where(temperature > 0, temperature, 1.0)
    best_B = logits_BV.max(axis=-1)
    logits_BNX = jnp.pad(logits_BV, ((0, 0), (0, -V % BLOCK)), constant_values=-jnp.inf)
    logits_BNX = logits_BNX.reshape(B, -1, BLOCK)
    block_BN = jnp.exp((logits_BNX - best_B[:, None, None]) / divisor).sum(axis=-1)

    def draw(key_2, position):
        key = jax.random.fold_in(jax.random.wrap_key_data(key_2), position)
        return jax.random.uniform(key, (2,))

    def sampled():
        uniform_B2 = jax.vmap(draw)(key_B2, position_B)
        block_B = _invert(block_BN, uniform_B2[:, 0])
        inside_BX = jnp.take_along_axis(logits_BNX, block_B[:, None, None], axis=1)[:, 0]
        weight_BX = jnp.exp((inside_BX - best_B[:, None]) / divisor)
        return (block_B * BLOCK + _invert(weight_BX, uniform_B2[:, 1])).astype(jnp.int32)

    def greedy():  # only when asked for: it takes another pass over the vocabulary
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)

    token_B = jax.lax.cond(temperature > 0, sampled, greedy)
    chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0]
    return token_B, (chosen_B - best_B) / divisor - jnp.log(block_BN.sum(axis=-1))


def _invert(weight_BX: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """Index drawn with probability weight / sum of weights: where the running sum passes
    uniform * sum. Never one of weight 0."""
    sum_BX = jnp.cumsum(weight_BX, axis=-1)
    passed_BX = sum_BX > uniform_B[:, None] * sum_BX[:, -1:]
    # Rounding may leave none (uniform * sum = sum): then the heaviest.
    return jnp.argmax(jnp.where(passed_BX.any(axis=-1, keepdims=True), passed_BX, weight_BX), -1)
