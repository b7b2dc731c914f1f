"""The engine's scheduling alone, with a device that costs nothing: whatever comes in, however small
the pool, everything ends, in a fair order, and no page is lost."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jax.cache.pool import Pages
from spark_jax.models.config import ModelConfig
from spark_jax.rollout.engine import Engine, Row
from spark_jax.rollout.engine_shape import GROUP, EngineShape
from spark_jax.rollout.identity import row_key

CONFIG = ModelConfig(
    vocab_size=4, layers=1, width=2, heads=1, kv_heads=1, head_dim=2, feed_forward=2
)
LONGEST = 40


class Dry(Engine):
    """Responses are as long as their allowance or, at random, shorter. Pages hold the tokens they
    are said to hold, so that a wrong table shows."""

    def __init__(self, shape, rng):
        super().__init__(CONFIG, shape, np.zeros((2, 4), np.int32), end_of_turn=3)
        self.rng = rng
        self.memory = {}  # (page, slot) -> token

    def _write(self, row, tokens, first):
        S = self.shape.slots
        for i, token in enumerate(tokens, first):
            page = row.pages.ids[i // S]
            assert self.pool.holders[page] == 1, "a shared page is never written"
            self.memory[page, i % S] = token

    def _copy(self, copies):
        for source, target in copies:
            for slot in range(self.shape.slots):
                self.memory[target, slot] = self.memory.get((source, slot))

    def _prefill(self, groups, G):
        assert len(groups) <= G
        for row, start, n in groups:
            assert 0 < n <= GROUP
            self._write(row, row.tokens[start : start + n], start)

    def _decode(self, rows, B, tiles):
        assert len(rows) <= B
        chunk = self.shape.chunk
        tokens, logprobs = np.full((B, chunk), -1), np.zeros((B, chunk))
        for b, row in enumerate(rows):
            new = []
            for _ in range(min(chunk, row.budget - len(row.response))):
                new.append(3 if self.rng.random() < 0.1 else self.rng.randrange(3))
                if new[-1] == 3:
                    break
            tokens[b, : len(new)] = new
            self._write(row, [row.tokens[-1], *new[:-1]], row.pages.length)
        return tokens, logprobs, np.zeros(B, np.int32)

    def check(self, row):
        """The cache holds the path, all but its last token."""
        held = [
            self.memory[row.pages.ids[i // self.shape.slots], i % self.shape.slots]
            for i in range(row.pages.length)
        ]
        assert held == row.tokens[: row.pages.length] and row.pages.length == len(row.tokens) - 1


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 6),
    slots=st.sampled_from([1, 3, 8]),
    chunk=st.integers(1, 6),
    spare=st.integers(0, 30),
    share=st.booleans(),
)
def test_everything_ends_in_order_and_no_page_is_lost(seed, rows, slots, chunk, spare, share):
    rng = random.Random(seed)
    least = -(-LONGEST // slots) + 3  # one path of full length, and scratch
    shape = EngineShape(rows, slots, least + spare, LONGEST, chunk, 8, share)
    engine = Dry(shape, rng)
    added, admitted = [], []
    running = engine.running

    def add(tokens, pages, keep=False):
        budget = rng.choice([0, 1, 5, 9])
        row = Row(list(tokens), row_key(len(added)), budget, pages, keep_prefix=keep)
        added.append(row)
        engine.add(row)

    for i in range(rng.randint(1, 5)):
        add([0] * rng.randint(1, 8), Pages(), keep=bool(i % 2))
    forks = rounds = 0
    while engine.busy:
        rounds += 1
        assert rounds < 2000, "it never came to an end"
        before = list(running)
        finished = engine.round()
        fresh = [row for row in [*finished, *running] if row not in before]
        admitted += sorted(fresh, key=added.index)
        assert engine.pool.used_pages <= shape.pages - 1 and len(running) <= rows
        for row in finished:
            engine.check(row)
            if row.prefix is not None:
                engine.release(row.prefix)
            more = len(row.tokens) + 4 + 9 <= LONGEST and len(added) < 25
            children = rng.randint(0, 3) if more else 0
            for _ in range(children - 1):  # a branch point: siblings share the path's pages
                forks += 1
                add([*row.tokens, *[1] * rng.randint(0, 4)], engine.fork(row.pages))
            if children:
                add([*row.tokens, *[2] * rng.randint(0, 4)], row.pages)
            else:
                engine.release(row.pages)
    assert admitted == added, "rows start in the order in which they came"
    assert engine.pool.used_pages == 0
