"""One piece of work for the sampling engine."""

from __future__ import annotations

import dataclasses

import numpy as np

from spark_jax.cache.pool import Pages


@dataclasses.dataclass(eq=False)
class Row:
    """One response to sample at the end of a path."""

    tokens: list[int]  # the path so far; grows by the sampled tokens
    key: np.ndarray  # uint32 [2], identity of the response (rollout/identity.py)
    budget: int  # most tokens of the response; 0 = only bring the path into the cache
    pages: Pages = dataclasses.field(default_factory=Pages)
    keep_prefix: bool = False  # leave a second holder of the path, as it was before the response
    prefix: Pages | None = None
    response: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    stop: int = 0  # state of the stop automaton

    @property
    def to_prefill(self) -> int:
        """Tokens to bring into the cache before the last one can be fed."""
        return len(self.tokens) - 1 - self.pages.length

    @property
    def longest(self) -> int:
        """Cached tokens when the response has its full length."""
        return len(self.tokens) - len(self.response) + self.budget
