"""Sampling a token per row, with keys that depend on who samples and never on when."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sample_tokens(
    logits_BV: jax.Array, key_B2: jax.Array, position_B: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One sample per row from softmax(logits / temperature), by the Gumbel trick.

    Args:
      logits_BV: float32.
      key_B2: uint32, raw key data of each row's own identity.
      position_B: the position along the path of the token that is being sampled; it is folded
        into the key, so the noise of a token depends on nothing else.
      temperature: scalar; 0 means greedy (log-probabilities are then those at temperature 1).

    Returns:
      token_B int32 and logprob_B float32, of the very distribution that was sampled from.
    """
    V = logits_BV.shape[-1]
    scaled_BV = logits_BV / jnp.where(temperature > 0, temperature, 1.0)

    def noise(key_2, position):
        key = jax.random.fold_in(jax.random.wrap_key_data(key_2), position)
        return jax.random.gumbel(key, (V,))

    noise_BV = jax.vmap(noise)(key_B2, position_B)
    token_B = jnp.argmax(scaled_BV + jnp.where(temperature > 0, noise_BV, 0.0), axis=-1)
    chosen_B = jnp.take_along_axis(scaled_BV, token_B[:, None], axis=-1)[:, 0]
    return token_B.astype(jnp.int32), chosen_B - jax.nn.logsumexp(scaled_BV, axis=-1)
