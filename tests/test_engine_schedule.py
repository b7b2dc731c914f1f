"""The engine's scheduling alone, with a device that costs nothing: whatever comes in, however small
the pool, everything ends, in a fair order, and no page is lost."""

import dataclasses
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jax.cache.pool import Pages
from spark_jax.models.config import ModelConfig
from spark_jax.rollout.engine import Engine
from spark_jax.rollout.engine_shape import GROUP, EngineShape, share_room
from spark_jax.rollout.identity import row_key
from spark_jax.rollout.row import Row
from spark_jax.rollout.sampler import Sampler

CONFIG = ModelConfig(
    vocab_size=4, layers=1, width=2, heads=1, kv_heads=1, head_dim=2, feed_forward=2
)
LONGEST = 40


class DrySampler(Sampler):
    """Responses are as long as their allowance or, at random, shorter. Pages hold the tokens they
    are said to hold, so that a wrong table shows."""

    def __init__(self, shape, rng):
        super().__init__(CONFIG, shape, np.zeros((2, 4), np.int32), end_of_turn=3)
        self.pool, self._rng = None, rng
        self.memory = {}  # (page, slot) -> token

    def _write(self, row, tokens, first):
        S = self.shape.slots
        for i, token in enumerate(tokens, first):
            page = row.pages.ids[i // S]
            assert self.pool.holders[page] == 1, "a shared page is never written"
            self.memory[page, i % S] = token

    def copy(self, copies):
        for source, target in copies:
            for slot in range(self.shape.slots):
                self.memory[target, slot] = self.memory.get((source, slot))

    def prefill(self, groups, G):
        assert len(groups) <= G
        for row, start, n in groups:
            assert 0 < n <= GROUP
            self._write(row, row.tokens[start : start + n], start)

    def decode(self, rows, B, tiles):
        assert len(rows) <= B
        chunk = self.shape.chunk
        tokens, logprobs = np.full((B, chunk), -1), np.zeros((B, chunk))
        for b, row in enumerate(rows):
            new = []
            for _ in range(min(chunk, row.budget - len(row.response))):
                new.append(3 if self._rng.random() < 0.1 else self._rng.randrange(3))
                if new[-1] == 3:
                    break
            tokens[b, : len(new)] = new
            self._write(row, [row.tokens[-1], *new[:-1]], row.pages.length)
        return tokens, logprobs, np.zeros(B, np.int32)


class Dry(Engine):
    def __init__(self, shape, rng):
        super().__init__(DrySampler(shape, rng))
        self.sampler.pool = self.pool

    def _evict(self):
        """Pages come free by it whenever some holder but the head has one of its own."""
        holders = [*self._parked.values(), *(row.pages for row in list(self.waiting)[1:])]
        own = any(self.pool.holders[page] == 1 for held in holders for page in held.ids)
        free, evictions = self.pool.free_pages, self.stats.evictions
        done = super()._evict()
        assert self.stats.evictions == evictions + done
        assert self.pool.free_pages > free or not own
        return done

    def check(self, row):
        """The cache holds the path, all but its last token."""
        held = [
            self.sampler.memory[row.pages.ids[i // self.shape.slots], i % self.shape.slots]
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
    idle = []  # paths whose environments take their time, and prefixes that are kept
    while engine.busy or idle:
        while idle and (not engine.busy or rng.random() < 0.3):
            tokens, pages = idle.pop(rng.randrange(len(idle)))
            if tokens and len(added) < 25:
                add(tokens, pages)
            else:
                engine.release(pages)
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
                idle.append((None, row.prefix))
            more = len(row.tokens) + 4 + 9 <= LONGEST and len(added) < 25
            children = rng.randint(0, 3) if more else 0
            for _ in range(children - 1):  # a branch point: siblings share the path's pages
                forks += 1
                tokens, pages = [*row.tokens, *[1] * rng.randint(0, 4)], engine.fork(row.pages)
                if rng.random() < 0.3:
                    idle.append((tokens, pages))
                else:
                    add(tokens, pages)
            if not children:
                engine.release(row.pages)
            elif rng.random() < 0.5:
                idle.append(([*row.tokens, 2], row.pages))
            else:
                add([*row.tokens, *[2] * rng.randint(0, 4)], row.pages)
    assert admitted == added, "rows start in the order in which they came"
    assert engine.pool.used_pages == 0


def dry(**shape):
    sizes = dict(rows=8, slots=4, pages=33, path_tokens=64, chunk=4, prefill_tokens=64)
    return Dry(EngineShape(**sizes | shape), random.Random(0))


def drain(engine, over=False):
    """Until nothing runs; `over`: paths are, with their response."""
    done = []
    while engine.busy:
        fresh = engine.round()
        done += fresh
        for row in fresh:
            engine.check(row)
            if over:
                engine.release(row.pages)
    return done


def test_who_has_no_page_of_its_own_is_not_evicted():
    """Seven siblings in the queue hold one prompt: that costs no pages, and what they share is
    computed once. The pages that the first in the queue lacks come from those who have some."""
    engine = dry(pages=33)  # 32 can be used
    prompt = Row([0] * 33, row_key("prompt"), 0)  # 8 pages
    parked = [Row([i] * 25, row_key("parked", i), 0) for i in range(2)]  # 6 pages each
    for row in (prompt, *parked):
        engine.add(row)
    drain(engine)
    assert engine.pool.free_pages == 12
    first = Row([3] * 51, row_key("first"), 5)  # 14 pages
    siblings = [Row([0] * 33, row_key(i), 4, engine.fork(prompt.pages)) for i in range(7)]
    engine.release(prompt.pages)
    for row in (first, *siblings):
        engine.add(row)
    before = engine.stats.prefill_tokens
    assert len(drain(engine, over=True)) == 8
    assert engine.stats.evictions == 1
    assert [len(row.pages.ids) for row in parked] == [6, 0], "last come first"
    assert engine.stats.prefill_tokens - before == 50, "of the prompt nothing was computed again"


def test_an_evicted_path_keeps_what_others_hold_too():
    engine = dry(pages=17)
    trunk = Row([0] * 17, row_key("trunk"), 0)  # 4 pages
    engine.add(trunk)
    drain(engine)
    tail = Row([0] * 17 + [1] * 16, row_key("tail"), 0, engine.fork(trunk.pages))  # 4 more
    engine.add(tail)
    drain(engine)
    engine.add(Row([2] * 35, row_key("other"), 4))  # 10 pages, and 8 are free
    drain(engine)
    assert engine.stats.evictions == 1 and tail.pages.ids == trunk.pages.ids
    assert (tail.pages.length, trunk.pages.length) == (16, 16)


def test_pages_that_nobody_holds_alone_come_free_in_the_end():
    """Two siblings hold all the pages that the first in the queue lacks."""
    engine = dry(pages=17)
    trunk = Row([0] * 33, row_key("trunk"), 0)  # 8 pages
    engine.add(trunk)
    drain(engine)
    siblings = [Row([0] * 33, row_key(i), 4, engine.fork(trunk.pages)) for i in range(2)]
    engine.release(trunk.pages)
    for row in (Row([2] * 35, row_key("other"), 4), *siblings):
        engine.add(row)
    assert len(drain(engine, over=True)) == 3 and engine.stats.evictions == 2


@given(st.lists(st.integers(1, 300), max_size=12), st.integers(1, 64))
def test_the_room_of_a_prefill_is_used_and_the_first_row_has_half_of_it(needs, room):
    given_out = share_room(needs, room)
    assert sum(given_out) == min(sum(needs), room)
    assert all(0 <= got <= need for got, need in zip(given_out, needs, strict=True))
    assert not needs or given_out[0] >= min(needs[0], -(-room // 2))


def test_short_rows_do_not_wait_for_a_long_prompt_nor_it_for_them():
    engine = dry(rows=4, pages=600, path_tokens=1100, prefill_tokens=64)  # 4 groups a round
    long = Row([0] * 1025, row_key("long"), 4)  # 64 groups
    engine.add(long)
    engine.round()
    short = [Row([1] * 31, row_key(i), 4) for i in range(40)]
    for row in short:
        engine.add(row)
    first = engine.round()
    assert first and set(first) <= set(short), "not after sixteen rounds"
    for _ in range(30):
        engine.round()
    assert long.to_prefill == 0, "two groups a round, whatever else there is"


def test_long_prompts_are_prefilled_one_after_the_other():
    """Side by side all of them would be ready when now the last one is."""
    assert share_room([9, 9, 9], 4) == [4, 0, 0]
    assert share_room([1, 9, 9], 4) == [1, 3, 0]


def programs_for(groups, ladder):
    """Sizes of the programs that `_prefill_round` takes."""
    engine = dry(rows=1, pages=groups * GROUP + 9, path_tokens=groups * GROUP + 9, slots=16)
    taken = []
    engine.shape = dataclasses.replace(engine.shape, prefill_tokens=ladder[-1] * GROUP)
    engine.sampler.prefill = lambda some, G: taken.append(G)
    engine.add(Row([0] * (groups * GROUP + 1), row_key(0), 0))
    engine.round()
    return taken


@pytest.mark.parametrize(
    "tokens,ladder",
    [
        (48, (1, 2, 3)),
        (256, (2, 4, 8, 16)),  # the default: 8 rows
        (512, (2, 4, 8, 16, 32)),
        (1600, (2, 4, 8, 16, 32, 64, 100)),
        (4096, (2, 4, 8, 16, 32, 64, 128, 256)),  # 128 rows
    ],
)
def test_few_programs_make_up_any_prefill(tokens, ladder):
    assert EngineShape(8, 16, 99, 999, prefill_tokens=tokens).group_ladder == ladder
    for groups in {1, ladder[-1] // 2, ladder[-1] - 1, ladder[-1]}:
        taken = programs_for(groups, ladder)
        assert groups <= sum(taken) <= groups + 1 and len(taken) <= len(ladder)
