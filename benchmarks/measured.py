"""What an engine of benchmarks/rollout.py reports."""

from __future__ import annotations

import resource
from typing import NamedTuple


class Measured(NamedTuple):
    seconds: float
    computed_tokens: int  # response tokens that were sampled
    prefill_tokens: int = 0
    host_share: float = float("nan")  # part of the time outside the device
    wasted: float = float("nan")  # part of the decoded rows that were padding or over already
    read_tokens: int = 0  # cached tokens that decoding read


def peak_gb() -> float:
    """Most memory that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
