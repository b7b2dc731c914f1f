"""Peers that are servers: they take requests (prompt tokens, number of new tokens) and answer when
one is done. The driver sends a recorded tree to them as an agent would: a response is asked for
once, its children when it is there. What the server knows of shared beginnings (a prefix cache)
is up to it."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from benchmarks.measured import Measured, Watch
from benchmarks.workload import Shape


class Server(Protocol):
    def submit(self, name: str, tokens: list[int], new: int) -> None:
        """Asks for exactly `new` tokens after `tokens`."""

    def collect(self) -> list[tuple[str, list[int]]]:
        """New tokens of requests that are done; waits until there is one."""


def play(
    server: Server, trees: Sequence[Shape], rows: int, vocab_size: int, limit: float
) -> Measured:
    """Grows the trees with at most `rows` open requests; environments answer at once. After `limit`
    seconds nothing more is asked for; what is open then is finished, and counts."""
    rng = np.random.default_rng(0)
    contexts = [[rng.integers(0, vocab_size, n).tolist() for n in tree.context] for tree in trees]
    ready = collections.deque(
        (tree, node, contexts[tree][0])
        for tree in range(len(trees))
        for node in trees[tree].children[0]
    )
    open_requests: dict[str, tuple[int, int, list[int]]] = {}
    watch = Watch(sum(tree.response_tokens for tree in trees), limit)
    while open_requests or (ready and not watch.over):
        while ready and len(open_requests) < rows and not watch.over:
            tree, node, tokens = ready.popleft()
            name = f"{tree}-{node}"
            open_requests[name] = (tree, node, tokens)
            server.submit(name, tokens, trees[tree].response[node])
        for name, new in server.collect():
            tree, node, tokens = open_requests.pop(name)
            if len(new) != trees[tree].response[node]:
                raise RuntimeError(
                    f"{len(new)} tokens came back where {trees[tree].response[node]} were asked for"
                )
            watch.written += len(new)
            path = tokens + new + contexts[tree][node]
            # Children go first: their beginning is in the server's cache now.
            ready.extendleft((tree, child, path) for child in trees[tree].children[node][::-1])
    return watch.measured(computed_tokens=watch.written)
