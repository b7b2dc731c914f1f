"""What decides that a step is a point to branch at. A signal is a pure function of a `Step`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from spark_jax.rollout.identity import host_random


class Step(NamedTuple):
    """What a signal may look at."""

    spark: bool  # the response holds a complete <explore> block
    logprobs: list[float]  # of the response's tokens
    identity: tuple  # (seed, phase, iteration, occurrence of the task, path of child indices)


Signal = Callable[[Step], bool]


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


def make_signal(name: str, rate: float) -> Signal:
    """The signal that `tree.signal` names."""
    return {"explore": explore, "always": always, "never": never, "random": random_at(rate)}[name]
