"""What decides that a step is a point to branch at. A signal is a pure function of a `Step`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from spark_jax.rollout.identity import host_random


class Step(NamedTuple):
    """What a signal may look at."""

    spark: bool  # the response holds a complete <explore> block
    surprises: tuple[float, ...]  # `Node.surprise` of the path's steps, this one last
    identity: tuple  # (seed, phase, iteration, occurrence of the task, path of child indices)


Signal = Callable[[Step], bool]
ForkCounts = Mapping[str, Sequence[float]]  # source -> (forks that split, forks), both fading

SOURCES = ("explore", "entropy")  # what `calibrated` weighs
USES_SURPRISE = ("entropy", "calibrated")  # signals that look at more than the tag
FIRST_STEPS = 2  # steps that a rise of surprise is measured from


def explore(step: Step) -> bool:
    """The model's own `<explore>` (the paper, Eq. 5)."""
    return step.spark


def always(step: Step) -> bool:
    return True


def never(step: Step) -> bool:
    """Separate episodes: with M = N this is plain GRPO sampling."""
    return False


def random_at(rate: float) -> Signal:
    """A fixed probability, whatever the model wrote (the paper's ablation)."""

    def signal(step: Step) -> bool:
        return host_random("signal", *step.identity).random() < rate

    return signal


def rise(surprises: Sequence[float]) -> float:
    """How far the last step's surprise, in nats a token, lies above the mean of the path's first
    steps (at most FIRST_STEPS, those before it). A first step has nothing to rise over: 0.

    The mean negative log-probability of the tokens that were sampled estimates the entropy of the
    distributions they came from without bias, and the sampler records it anyway.
    """
    first = surprises[:-1][:FIRST_STEPS]
    return surprises[-1] - sum(first) / len(first) if first else 0.0


def fired(spark: bool, surprises: Sequence[float], threshold: float) -> dict[str, bool]:
    """Which of `SOURCES` ask for a fork at a step."""
    return {"explore": spark, "entropy": rise(surprises) > threshold}


def entropy_above(threshold: float) -> Signal:
    """The model is less sure than when the episode began, by more than `threshold` nats a token
    (after ARPO, arXiv 2507.19849, which measures from the first tokens too)."""

    def signal(step: Step) -> bool:
        return rise(step.surprises) > threshold

    return signal


def calibrated(threshold: float, counts: ForkCounts) -> Signal:
    """The tag or the entropy, whichever has been the better guide to where a fork matters.

    The chance that a fork at which a source fired splits into success and failure has the
    posterior Beta(1 + splits, 1 + others), counted over the forks of past iterations, old ones
    fading. Where both have been heard, one draw from each posterior; the source of the greater draw
    decides this step (Thompson sampling): it decides as often as it is likely to be the better one,
    so neither is given up for good early. A source with less than a whole fork to its name has no
    say against one that fires: nothing is known of it, and its silence would teach nothing.
    """

    def signal(step: Step) -> bool:
        says = fired(step.spark, step.surprises, threshold)
        heard = [s for s in SOURCES if says[s] or counts.get(s, (0, 0))[1] >= 1]
        draw = host_random("calibrated", *step.identity).betavariate
        drawn = {source: draw(*beta(counts, source)) for source in heard}
        return bool(heard) and says[max(heard, key=drawn.__getitem__)]

    return signal


def beta(counts: ForkCounts, source: str) -> tuple[float, float]:
    """Parameters of a source's Beta posterior, from a uniform prior."""
    split, forks = counts.get(source, (0, 0))
    return 1 + split, 1 + forks - split


def make_signal(
    name: str, rate: float, threshold: float = 0.0, counts: ForkCounts | None = None
) -> Signal:
    """The signal that `tree.signal` names.

    Args:
      rate: of `random`.
      threshold: of `entropy` and `calibrated`, nats a token.
      counts: of `calibrated`, from past iterations (rollout/reliability.py).
    """
    signals = {
        "explore": explore,
        "entropy": entropy_above(threshold),
        "calibrated": calibrated(threshold, counts or {}),
        "random": random_at(rate),
        "always": always,
        "never": never,
    }
    return signals[name]
