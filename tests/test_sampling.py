"""Sampled tokens follow softmax(logits / temperature), across blocks of the vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import chisquare

from spark_jax.ops import sampling
from spark_jax.ops.sampling import BLOCK, sample_tokens


def draw(logits_V, temperature, count, seed=0):
    """`count` samples of one distribution, each row with its own position."""
    logits = jnp.broadcast_to(jnp.asarray(logits_V, jnp.float32), (count, len(logits_V)))
    keys = jnp.broadcast_to(jnp.array([7, seed], jnp.uint32), (count, 2))
    token, logp = jax.jit(sample_tokens)(logits, keys, jnp.arange(count), jnp.float32(temperature))
    return np.asarray(token), np.asarray(logp)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("vocab", [5, BLOCK, 2 * BLOCK + 37])
def test_tokens_are_as_frequent_as_they_are_likely(vocab, temperature):
    logits = 2.0 * np.random.default_rng(1).normal(size=vocab)
    logits[vocab // 2] = -np.inf
    token, logp = draw(logits, temperature, 20_000)
    expected = log_softmax(logits / temperature)
    np.testing.assert_allclose(logp, expected[token], rtol=1e-4, atol=1e-5)
    assert not (token == vocab // 2).any()
    # Rare tokens together, as the test asks for at least a few of each kind.
    probability = np.exp(expected)
    common = probability * len(token) >= 10
    counts = np.bincount(token, minlength=vocab)
    seen, wanted = counts[common], probability[common] * len(token)
    if probability[~common].sum() > 0:
        seen = np.append(seen, counts[~common].sum())
        wanted = np.append(wanted, probability[~common].sum() * len(token))
    assert chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > 1e-3


def test_the_two_numbers_of_a_row_are_independent():
    """One number for both choices would tie the place in a block to the block."""
    logits = np.zeros(2 * BLOCK)
    token, _ = draw(logits, 1.0, 20_000)
    halves = np.array(
        [[((token // BLOCK == b) & (token % BLOCK // (BLOCK // 2) == h)).mean() for h in (0, 1)]
         for b in (0, 1)]
    )  # fmt: skip
    np.testing.assert_allclose(halves, 0.25, atol=0.015)


def test_zero_temperature_takes_the_best_token():
    logits = np.random.default_rng(2).normal(size=BLOCK + 3)
    token, logp = draw(logits, 0.0, 50)
    assert (token == logits.argmax()).all()
    np.testing.assert_allclose(logp, log_softmax(logits).max(), rtol=1e-5)


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-24, 1.0])
def test_rounding_never_picks_an_impossible_token(uniform):
    weight = jnp.asarray([[0.0, 3.0, 0.0, 1.0, 0.0]])
    index = sampling._invert(weight, jnp.asarray([uniform], jnp.float32))
    assert float(weight[0, int(index[0])]) > 0
