"""What an engine of benchmarks/rollout.py reports."""

from __future__ import annotations

from typing import NamedTuple


class Measured(NamedTuple):
    seconds: float
    computed_tokens: int  # response tokens that were sampled
    prefill_tokens: int = 0
    host_share: float = float("nan")  # part of the time outside the device
    wasted: float = float("nan")  # part of the decoded rows that were padding or over already
    read_tokens: int = 0  # cached tokens that decoding read
