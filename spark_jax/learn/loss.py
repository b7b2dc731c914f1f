"""Losses over packed targets. Sums over targets; the caller divides by Z.

A loss takes the log-probabilities and entropies of a micro-batch and the batch, and returns the
sum to minimise and a dictionary of sums to report; divided by Z = sum of n these are means in
which a shared token counts as often as there are leaves below it.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from spark_jax.learn.pack import PackedBatch

Loss = Callable[[jax.Array, jax.Array, PackedBatch], tuple[jax.Array, dict[str, jax.Array]]]

MAX_LOG_RATIO = 20.0  # exp of more than this only overflows


def k3(logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
    """Estimator of KL(policy || reference) from a sample of the policy (J. Schulman, "Approximating
    KL divergence", k3): exp(d) - d - 1 with d = ref_logp - logp. Never negative."""
    d = ref_logp - logp
    return jnp.exp(jnp.minimum(d, MAX_LOG_RATIO)) - d - 1.0


def k2(logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
    """d² / 2 of the same d: biased, but its gradient is, in the mean, that of KL(policy ||
    reference) for samples of the policy, and grows with d, where that of k3 grows with exp(d)."""
    return 0.5 * jnp.square(ref_logp - logp)


KL_ESTIMATORS = {"k3": k3, "k2": k2}


def clipped_surrogate(
    ratio: jax.Array,
    a_plus: jax.Array,
    a_minus: jax.Array,
    clip_low: float,
    clip_high: float,
    dual_clip: float = 0.0,
) -> jax.Array:
    """min(r, 1 + high) a+ + max(r, 1 - low) a-: the sum over copies of min(r A, clip(r) A), since
    all copies of a token have one ratio r (PPO, arXiv 1707.06347).

    `dual_clip` = c > 1 bounds what a negative advantage can cost: the second term becomes
    min(max(r, 1 - low), c) a-, which is max(min(r A, clip(r) A), c A) for A < 0
    (arXiv 1912.09729, equation 4). 0 switches it off.
    """
    down = jnp.maximum(ratio, 1.0 - clip_low)
    if dual_clip:
        down = jnp.minimum(down, dual_clip)
    return jnp.minimum(ratio, 1.0 + clip_high) * a_plus + down * a_minus


def policy_loss(
    logp_RM: jax.Array,
    entropy_RM: jax.Array,
    batch: PackedBatch,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coef: float = 0.01,
    entropy_coef: float = 0.0,
    dual_clip: float = 0.0,
    kl_estimator: Callable[[jax.Array, jax.Array], jax.Array] = k3,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """-sum[min(r, 1+high) a+ + max(r, 1-low) a- - kl_coef kl n + entropy_coef H n].

    Bind the settings with `functools.partial`. Metrics: `policy_loss`, `kl`, `clip_fraction` (part
    of the token copies whose gradient the clip removes; of a token with copies of both signs, the
    part of its |A|), `entropy`, `ratio`, and `logp_gap`, the
    mean |log-prob - old log-prob|: before the first update of an iteration this is the difference
    between sampler and trainer.
    """
    n = batch.n_RM
    chex.assert_equal_shape([logp_RM, entropy_RM, batch.old_logp_RM, n])
    seen = batch.seen_RM
    # Padding must not reach exp: 0 * inf is not 0.
    difference = jnp.where(seen, logp_RM - batch.old_logp_RM, 0.0)
    ratio = jnp.exp(jnp.clip(difference, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    surrogate = clipped_surrogate(
        ratio, batch.a_plus_RM, batch.a_minus_RM, clip_low, clip_high, dual_clip
    )
    loss = policy = -surrogate.sum()
    kl = (jnp.where(seen, kl_estimator(logp_RM, batch.ref_logp_RM), 0.0) * n).sum()
    entropy = (entropy_RM * n).sum()
    if kl_coef:
        loss += kl_coef * kl
    if entropy_coef:
        loss -= entropy_coef * entropy
    cut_up = (ratio > 1.0 + clip_high) & (batch.a_plus_RM > 0)
    cut_down = (ratio < 1.0 - clip_low) & (batch.a_minus_RM < 0)
    if dual_clip:
        cut_down |= (ratio > dual_clip) & (batch.a_minus_RM < 0)
    removed = cut_up * batch.a_plus_RM - cut_down * batch.a_minus_RM
    whole = batch.a_plus_RM - batch.a_minus_RM
    part = removed / jnp.where(whole > 0, whole, 1.0)
    metrics = {
        "policy_loss": policy,
        "kl": kl,
        "clip_fraction": (part * n).sum(),
        "entropy": entropy,
        "ratio": (ratio * n).sum(),
        "logp_gap": (jnp.abs(difference) * n).sum(),
    }
    return loss, metrics


def sft_loss(
    logp_RM: jax.Array, entropy_RM: jax.Array, batch: PackedBatch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Negative log-likelihood, sum of -nll log p."""
    chex.assert_equal_shape([logp_RM, entropy_RM, batch.nll_RM])
    loss = -(logp_RM * batch.nll_RM).sum()
    return loss, {"nll": loss, "entropy": (entropy_RM * batch.nll_RM).sum()}
