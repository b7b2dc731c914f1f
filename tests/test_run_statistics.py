"""Intervals against published numbers and brute force."""

import itertools

import numpy as np
import pytest

from spark_jax.run.statistics import bootstrap, paired_difference, pass_at_k, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe 1998, table I, method 3 (score without continuity correction).
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_published(successes, trials, low, high):
    interval = wilson(successes, trials)
    assert interval.estimate == successes / trials
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


def test_wilson_is_symmetric_and_checked():
    a, b = wilson(3, 10), wilson(7, 10)
    assert a.low == pytest.approx(1 - b.high)
    assert wilson(10, 10).high == 1.0
    for bad in ((1, 0), (5, 4), (-1, 4)):
        with pytest.raises(ValueError):
            wilson(*bad)


def test_bootstrap_of_a_proportion_is_close_to_the_binomial():
    values = [1] * 64 + [0] * 64
    interval = bootstrap(values, seed=1)
    deviation = np.sqrt(0.25 / 128)
    assert interval.estimate == 0.5
    assert interval.low == pytest.approx(0.5 - 1.96 * deviation, abs=0.01)
    assert interval.high == pytest.approx(0.5 + 1.96 * deviation, abs=0.01)


def test_bootstrap_is_seeded_and_constant_values_have_no_width():
    values = list(range(40))
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)
    assert bootstrap([2.0] * 5) == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError):
        bootstrap([])


def test_clustered_bootstrap_sees_the_spread_between_seeds():
    """Three seeds that disagree: pooling their episodes would hide nearly all of the doubt."""
    seeds = [[0] * 80 + [1] * 20, [0] * 50 + [1] * 50, [0] * 20 + [1] * 80]
    clustered, pooled = bootstrap(seeds), bootstrap(sum(seeds, []))
    assert clustered.estimate == pytest.approx(pooled.estimate)
    assert clustered.high - clustered.low > 3 * (pooled.high - pooled.low)
    # With every seed alike, only the episodes' own spread remains.
    alike = [[0] * 50 + [1] * 50] * 3
    assert bootstrap(alike).low == pytest.approx(bootstrap(sum(alike, [])).low, abs=0.01)


def test_paired_difference_uses_the_pairing():
    rng = np.random.default_rng(0)
    hard = rng.random(200) < 0.5  # the same episodes are hard for both
    first = np.where(hard, 0, 1)
    second = first.copy()
    second[np.flatnonzero(hard)[:12]] = 1  # better on 12 of them, worse on none
    difference = paired_difference(first.tolist(), second.tolist())
    assert difference.estimate == pytest.approx(0.06)
    assert difference.low > 0.02 and difference.high < 0.10
    assert difference.p_value == pytest.approx(2 * 0.5**12)
    unpaired = bootstrap(second.tolist()).estimate - bootstrap(first.tolist()).low
    assert difference.high < unpaired


def test_p_value_equals_brute_force():
    differences = [0.5, -0.25, 0.75, 1.0, 0.0, 0.25]
    signs = np.array(list(itertools.product([1, -1], repeat=len(differences))))
    sums = np.abs(signs @ differences)
    expected = np.mean(sums >= abs(sum(differences)) - 1e-12)
    got = paired_difference([0.0] * 6, differences)
    assert got.p_value == pytest.approx(expected)


def test_p_value_of_many_episodes_agrees_with_the_exact_sign_test():
    # 20 episodes changed, 15 for the better: two-sided sign test gives 0.0414.
    first = [0] * 15 + [1] * 5 + [0] * 30
    second = [1] * 15 + [0] * 5 + [0] * 30
    assert paired_difference(first, second, draws=40_000).p_value == pytest.approx(
        0.0414, abs=0.004
    )
    assert paired_difference(second, first).estimate == pytest.approx(-0.2)


def test_p_value_without_a_difference_is_one_and_over_seeds_few_seeds_cannot_be_sure():
    assert paired_difference([1, 0, 1], [1, 0, 1]).p_value == 1.0
    better = paired_difference([[0] * 50] * 3, [[1] * 50] * 3)
    assert better.estimate == 1.0 and better.p_value == 0.25  # 2 of 2**3 sign patterns
    with pytest.raises(ValueError):
        paired_difference([1, 0], [1, 0, 1])


def test_pass_at_k_equals_counting_subsets():
    for trials, successes, k in [(5, 2, 3), (6, 1, 2), (4, 4, 1), (4, 0, 4), (32, 3, 16)]:
        if trials <= 6:
            outcomes = [1] * successes + [0] * (trials - successes)
            subsets = list(itertools.combinations(outcomes, k))
            expected = np.mean([any(s) for s in subsets])
        else:
            expected = 1 - np.prod([(trials - successes - i) / (trials - i) for i in range(k)])
        assert pass_at_k(trials, successes, k) == pytest.approx(expected)
    with pytest.raises(ValueError):
        pass_at_k(3, 1, 4)
