"""Intervals and comparisons for success rates. NumPy only; every random draw has a seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist  # the standard library's module, not this one
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


class Difference(NamedTuple):
    """A paired difference (second minus first) with its interval and two-sided p value."""

    estimate: float
    low: float
    high: float
    p_value: float


def percent(interval: Interval) -> str:
    """An interval of shares as text: 50.0 [25.0, 75.0]."""
    estimate, low, high = (f"{100 * x:.1f}" for x in interval)
    return f"{estimate} [{low}, {high}]"


def points(difference: Difference) -> str:
    """A difference of shares as text, in percentage points: +2.0 [-1.0, +5.0]."""
    estimate, low, high = (f"{100 * x:+.1f}" for x in difference[:3])
    return f"{estimate} [{low}, {high}]"


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927), good for small counts too.

    Raises:
      ValueError: not 0 <= successes <= trials, or no trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials is no proportion")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2)) / (1 + z * z / trials)
    low = 0.0 if successes == 0 else max(0.0, centre - half)  # exact ends, not 1e-17
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return Interval(p, low, high)


def bootstrap(
    values: Sequence[float] | Sequence[Sequence[float]],
    seed: int = 0,
    draws: int = 10_000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of a mean.

    Args:
      values: one number per episode; or one sequence of them per training seed, and then seeds are
        drawn first and episodes inside each drawn seed (a cluster bootstrap): episodes of one
        training run are not independent draws of the method.
    """
    groups = _groups(values)
    return _percentile_interval(groups, _resampled_means(groups, seed, draws), confidence)


def macro_average(
    groups: Sequence[Sequence[float]],
    seed: int = 0,
    draws: int = 10_000,
    confidence: float = 0.95,
) -> Interval:
    """Mean of the means of fixed groups (task types), every group weighing the same; episodes are
    drawn inside each group, the groups themselves are not (they are all there are)."""
    arrays = _groups([list(g) for g in groups])
    rng = np.random.default_rng(seed)
    means = np.mean([_means_of_resamples(g, draws, rng) for g in arrays], axis=0)
    return _percentile_interval(arrays, means, confidence)


def paired_difference(
    first: Sequence[float] | Sequence[Sequence[float]],
    second: Sequence[float] | Sequence[Sequence[float]],
    seed: int = 0,
    draws: int = 10_000,
    confidence: float = 0.95,
) -> Difference:
    """Difference of means, second minus first, of two policies on the same panel of episodes.

    Args:
      first, second: results of the same episodes in the same order; or one sequence per training
        seed (same number of seeds, paired by position), resampled as in `bootstrap`.

    Returns:
      Percentile bootstrap interval, and a two-sided p value: the chance of a difference at least
      as large when there is none, from a sign-flip permutation test on the paired differences (of
      the seeds' means when there are several seeds), with the (count + 1) / (draws + 1) rule;
      exact when there are at most 2**12 sign patterns.

    Raises:
      ValueError: the two panels do not have the same shape.
    """
    a, b = _groups(first), _groups(second)
    if [len(g) for g in a] != [len(g) for g in b]:
        raise ValueError("the two panels have different sizes, so they cannot be paired")
    groups = [y - x for x, y in zip(a, b, strict=True)]
    interval = bootstrap([g.tolist() for g in groups], seed, draws, confidence)
    units = groups[0] if len(groups) == 1 else np.array([g.mean() for g in groups])
    return Difference(*interval, _sign_flip_p(units, seed, draws))


def pass_at_k(trials: int, successes: int, k: int) -> float:
    """Unbiased chance that at least one of k samples succeeds, from `trials` samples of which
    `successes` did: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, eq. 1).

    Raises:
      ValueError: not 0 <= successes <= trials or not 1 <= k <= trials.
    """
    if not 0 <= successes <= trials or not 1 <= k <= trials:
        raise ValueError(f"pass@{k} needs 1 <= k <= trials and successes of them, not more")
    return 1.0 - math.comb(trials - successes, k) / math.comb(trials, k)


def _groups(values: Sequence[float] | Sequence[Sequence[float]]) -> list[np.ndarray]:
    nested = len(values) > 0 and np.ndim(values[0]) == 1
    groups = [np.asarray(g, np.float64) for g in (values if nested else [values])]
    if not groups or any(g.ndim != 1 or g.size == 0 for g in groups):
        raise ValueError("an interval needs at least one episode in every group")
    return groups


def _percentile_interval(
    groups: list[np.ndarray], means: np.ndarray, confidence: float
) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(np.mean([g.mean() for g in groups])), float(low), float(high))


def _resampled_means(groups: list[np.ndarray], seed: int, draws: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    # [group, draw]: mean of a bootstrap sample of the group's episodes. With several groups each
    # draw then takes as many groups as there are, with replacement; one group drawn twice in the
    # same draw needs two independent samples of its episodes, hence one table per slot.
    slots = []
    for _ in groups:
        table = np.stack([_means_of_resamples(g, draws, rng) for g in groups])
        slots.append(table[rng.integers(len(groups), size=draws), np.arange(draws)])
    return np.mean(slots, axis=0)


def _means_of_resamples(values: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    parts = [
        values[rng.integers(values.size, size=(part, values.size))].mean(axis=1)
        for part in _parts(draws, values.size)
    ]
    return np.concatenate(parts)


def _parts(draws: int, size: int) -> Iterator[int]:
    """Splits `draws` so that a table of part x size numbers stays at a few MB."""
    part = max(1, 500_000 // size)
    for start in range(0, draws, part):
        yield min(part, draws - start)


def _sign_flip_p(differences: np.ndarray, seed: int, draws: int) -> float:
    changed = differences[differences != 0]  # a zero stays zero under any sign
    if changed.size == 0:
        return 1.0
    observed = abs(changed.sum())
    slack = 1e-9 * np.abs(changed).sum()  # sums in another order differ in the last bits
    if changed.size <= 12:
        bits = np.arange(2**changed.size)[:, None] >> np.arange(changed.size)
        sums = np.abs((1 - 2 * (bits & 1)) @ changed)
        return float(np.mean(sums >= observed - slack))
    rng = np.random.default_rng(seed)
    hits = 0
    for part in _parts(draws, changed.size):
        signs = 1 - 2 * rng.integers(2, size=(part, changed.size))
        hits += int(np.sum(np.abs(signs @ changed) >= observed - slack))
    return (hits + 1) / (draws + 1)
