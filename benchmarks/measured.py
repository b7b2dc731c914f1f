"""What an engine of benchmarks/rollout.py reports."""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import time
from typing import NamedTuple


class Measured(NamedTuple):
    seconds: float
    computed_tokens: int  # response tokens that were sampled
    prefill_tokens: int = 0
    host_share: float = float("nan")  # part of the time outside the device
    wasted: float = float("nan")  # part of the decoded rows that were padding or over already
    read_tokens: int = 0  # cached tokens that decoding read
    share: float = 1.0  # part of its response tokens that were written before its time was over


@dataclasses.dataclass
class Watch:
    """A peer at work, from now on: what it has written, and whether its time is over. A slow one is
    measured by what it did until then."""

    wanted: int  # response tokens that it has to write
    limit: float = float("inf")  # seconds
    written: int = 0
    start: float = dataclasses.field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    @property
    def over(self) -> bool:
        return self.seconds > self.limit

    @contextlib.contextmanager
    def stopped(self):
        """What is done inside, such as compilation, takes no time."""
        begin = time.perf_counter()
        yield
        self.start += time.perf_counter() - begin

    def measured(self, **rest) -> Measured:
        return Measured(seconds=self.seconds, share=self.written / self.wanted, **rest)


def peak_gb() -> float:
    """Most memory that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
