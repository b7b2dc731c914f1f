import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spark_jax.learn.loss import clipped_surrogate, k2, k3, policy_loss, sft_loss
from spark_jax.learn.pack import PackedBatch


def batch_of(old, ref, a_plus, a_minus, n, nll=None):
    nll = [0.0] * len(old) if nll is None else nll
    index = jnp.zeros((1, len(old)), jnp.int32)
    numbers = (jnp.asarray([x], jnp.float32) for x in (old, ref, a_plus, a_minus, n, nll))
    return PackedBatch(index, index, index, index, index, *numbers)


@pytest.mark.parametrize("dual_clip", [0.0, 3.0])
def test_surrogate_is_the_sum_over_copies(dual_clip):
    rng = np.random.default_rng(0)
    advantages = rng.normal(size=(50, 6))
    ratio = np.exp(rng.normal(size=50) * 0.8)
    low, high = 0.2, 0.3
    copies = np.minimum(
        ratio[:, None] * advantages, np.clip(ratio, 1 - low, 1 + high)[:, None] * advantages
    )
    if dual_clip:
        bounded = np.maximum(copies, dual_clip * advantages)
        copies = np.where(advantages < 0, bounded, copies)
        assert (ratio > dual_clip).any()
    a_plus, a_minus = np.maximum(advantages, 0).sum(1), np.minimum(advantages, 0).sum(1)
    got = clipped_surrogate(ratio, a_plus, a_minus, low, high, dual_clip)
    np.testing.assert_allclose(got, copies.sum(1), rtol=1e-5, atol=1e-6)


def test_k3_by_hand():
    assert float(k3(jnp.log(0.5), jnp.log(0.25))) == pytest.approx(0.5 - np.log(0.5) - 1)
    assert float(k3(jnp.float32(-1.0), jnp.float32(-1.0))) == 0.0
    # Its mean over samples of the policy is the divergence.
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    assert (p * k3(jnp.log(p), jnp.log(q))).sum() == pytest.approx((p * np.log(p / q)).sum(), 1e-5)


def test_the_gradient_of_k2_is_that_of_the_kl_in_the_mean():
    """Sum of p(x) grad k2(x) over all x, with p held as the distribution sampled from."""
    ref = jax.nn.log_softmax(jnp.array([0.3, -1.0, 2.0]))
    logits = jnp.array([1.0, 0.5, -0.5])
    p = jax.nn.softmax(logits)

    def kl(x):
        logp = jax.nn.log_softmax(x)
        return (jnp.exp(logp) * (logp - ref)).sum()

    mean = jax.grad(lambda x: (p * k2(jax.nn.log_softmax(x), ref)).sum())(logits)
    np.testing.assert_allclose(mean, jax.grad(kl)(logits), atol=1e-6)
    assert float(jax.grad(k2)(-30.0, -1.0)) == pytest.approx(-29.0)  # k3: -exp(20) and more


def test_policy_loss_by_hand():
    old = [np.log(0.5), np.log(0.5), np.log(0.5), 0.0]
    logp = jnp.asarray([[np.log(0.75), np.log(0.3), np.log(0.45), -np.inf]])  # 1.5, 0.6, 0.9
    batch = batch_of(old, old, [2.0, 1.0, 1.0, 0.0], [-1.0, -4.0, 0.0, 0.0], [3.0, 5.0, 1.0, 0.0])
    entropy = jnp.asarray([[1.0, 2.0, 3.0, 0.0]])
    surrogate = (1.2 * 2 - 1.5 * 1) + (0.6 * 1 - 0.8 * 4) + 0.9
    kl = sum(n * (1 / r + np.log(r) - 1) for r, n in ((1.5, 3), (0.6, 5), (0.9, 1)))
    total, metrics = policy_loss(logp, entropy, batch, kl_coef=0.1, entropy_coef=0.01)
    assert float(total) == pytest.approx(-surrogate + 0.1 * kl - 0.01 * 16, rel=1e-5)
    assert float(metrics["kl"]) == pytest.approx(kl, rel=1e-5)
    # Of the first token the copies that gain are cut, 2 of 3 by |A|; of the second those that lose.
    assert float(metrics["clip_fraction"]) == pytest.approx(3 * 2 / 3 + 5 * 4 / 5)
    assert float(metrics["ratio"]) == pytest.approx(1.5 * 3 + 0.6 * 5 + 0.9, rel=1e-5)
    assert float(metrics["entropy"]) == 16.0
    gap = 3 * np.log(1.5) - 5 * np.log(0.6) - np.log(0.9)
    assert float(metrics["logp_gap"]) == pytest.approx(gap, rel=1e-5)


def test_gradient_stops_where_it_is_clipped():
    old = [0.0] * 4
    batch = batch_of(old, old, [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, -1.0, -1.0], [1.0] * 4)
    loss = functools.partial(policy_loss, clip_low=0.1, clip_high=0.3, kl_coef=0.0)
    logp = jnp.log(jnp.asarray([[1.35, 1.25, 0.85, 0.95]]))
    grad = jax.grad(lambda x: loss(x, jnp.zeros((1, 4)), batch)[0])(logp)
    np.testing.assert_allclose(grad, [[0.0, -1.25, 0.0, 0.95]], rtol=1e-6)


def test_extreme_ratios_and_padding_stay_finite():
    batch = batch_of([-200.0, 0.0, 0.0], [0.0] * 3, [1.0, 0.0, 0.0], [-1.0] + [0.0] * 2, [1, 1, 0])
    logp = jnp.asarray([[0.0, -300.0, -jnp.inf]])
    value, grad = jax.value_and_grad(
        lambda x: policy_loss(x, jnp.zeros((1, 3)), batch, dual_clip=3.0)[0]
    )(logp)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_sft_loss_by_hand():
    batch = batch_of(*[[0.0] * 3] * 5, nll=[1.0, 2.0, 0.0])
    total, metrics = sft_loss(jnp.asarray([[-1.0, -0.5, 0.0]]), jnp.ones((1, 3)), batch)
    assert float(total) == float(metrics["nll"]) == 2.0
