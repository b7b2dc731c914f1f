"""A plain forward pass over a whole path: what every cache has to agree with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from spark_jax.models.transformer import causal_attend, forward, unembed

LENGTHS = 64  # lengths are filled up to a multiple of this, so that few programs are compiled


def dense_logits(params, config, tokens):
    """Logits after each token, [T, V]."""
    padded = np.zeros(-(-len(tokens) // LENGTHS) * LENGTHS, np.int32)
    padded[: len(tokens)] = tokens
    return np.asarray(_logits(params, config, padded))[: len(tokens)]


def dense_logprobs(params, config, tokens, start, temperature=1.0):
    """Log-probabilities of tokens[start:]."""
    logits = dense_logits(params, config, tokens)[start - 1 : -1] / temperature
    logp = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    return np.take_along_axis(logp, np.array(tokens[start:])[:, None], 1)[:, 0]


@functools.partial(jax.jit, static_argnames="config")
def _logits(params, config, tokens):
    hidden, _ = forward(params, config, tokens, jnp.arange(len(tokens)), causal_attend(1))
    return unembed(params, config, hidden)
