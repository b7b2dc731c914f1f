"""The page pool as a state machine: reference counts, no leak, no write to a shared page."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from spark_jax.cache.pool import PagePool, Pages, PoolFull, common_prefix


class PoolMachine(RuleBasedStateMachine):
    """Random grows, forks and frees, mirrored by a slow twin that stores every token of every
    path in the page where the device would have it."""

    def __init__(self):
        super().__init__()
        self.pool = PagePool(pages=9, slots=3)
        self.memory = {}  # page -> list of tokens written there
        self.paths = []  # (Pages, the tokens that must be readable through it)
        self.clock = 0

    @rule()
    def open(self):
        self.paths.append((Pages(), []))

    @precondition(lambda self: self.paths)
    @rule(which=st.integers(0, 99), tokens=st.integers(1, 7))
    def write(self, which, tokens):
        held, content = self.paths[which % len(self.paths)]
        before = (list(held.ids), held.length, list(self.pool.holders), self.pool.free_pages)
        need = self.pool.missing(held, held.length + tokens)
        try:
            copies = self.pool.grow(held, held.length + tokens)
        except PoolFull:
            assert need > before[3]
            assert before == (held.ids, held.length, self.pool.holders, self.pool.free_pages)
            return
        assert before[3] - self.pool.free_pages == need
        for source, target in copies:
            self.memory[target] = list(self.memory[source])
        for _ in range(tokens):
            page = held.ids[held.length // 3]
            assert self.pool.holders[page] == 1, "a shared page is written"
            assert page != 0
            slots = self.memory.setdefault(page, [None] * 3)
            self.clock += 1
            slots[held.length % 3] = self.clock
            content.append(self.clock)
            held.length += 1

    @precondition(lambda self: self.paths)
    @rule(which=st.integers(0, 99))
    def fork(self, which):
        held, content = self.paths[which % len(self.paths)]
        self.paths.append((self.pool.fork(held), list(content)))

    @precondition(lambda self: self.paths)
    @rule(which=st.integers(0, 99))
    def free(self, which):
        held, _ = self.paths.pop(which % len(self.paths))
        self.pool.free(held)
        assert held.ids == [] and held.length == 0

    @precondition(lambda self: self.paths)
    @rule(which=st.integers(0, 99), tokens=st.integers(0, 12))
    def keep(self, which, tokens):
        held, content = self.paths[which % len(self.paths)]
        self.pool.keep(held, tokens)
        del content[tokens:]
        assert held.length == len(content) and len(held.ids) == -(-held.length // 3)

    @precondition(lambda self: any(held.ids for held, _ in self.paths))
    @rule(which=st.integers(0, 99))
    def cut(self, which):
        some = [path for path in self.paths if path[0].ids]
        held, content = some[which % len(some)]
        ids, counts, free = list(held.ids), list(self.pool.holders), self.pool.free_pages
        self.pool.cut(held)
        given_up = ids[len(held.ids) :]
        assert {counts[page] for page in given_up} == {counts[ids[-1]]}
        assert all(counts[page] > counts[ids[-1]] for page in held.ids)
        if counts[ids[-1]] == 1:
            assert self.pool.free_pages == free + len(given_up)
        del content[held.length :]

    @invariant()
    def counts_are_holders(self):
        for page in range(1, 9):
            holders = sum(page in held.ids for held, _ in self.paths)
            assert self.pool.holders[page] == holders
        for held, _ in self.paths:
            counts = [self.pool.holders[page] for page in held.ids]
            assert counts == sorted(counts, reverse=True), "whoever holds a page holds all before"
        assert self.pool.used_pages == sum(count > 0 for count in self.pool.holders)

    @invariant()
    def every_path_reads_its_own_tokens(self):
        for held, content in self.paths:
            read = [self.memory[held.ids[i // 3]][i % 3] for i in range(held.length)]
            assert read == content


PoolMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase


def test_a_full_pool_says_so_and_changes_nothing():
    pool = PagePool(pages=4, slots=2)
    held = Pages()
    pool.grow(held, 6)
    with pytest.raises(PoolFull, match="1 pages are needed and 0 are free"):
        pool.grow(Pages(), 1)
    pool.free(held)
    assert pool.free_pages == 3


def test_a_shared_full_page_is_not_copied():
    pool = PagePool(pages=6, slots=2)
    held = Pages()
    pool.grow(held, 4)
    held.length = 4
    other = pool.fork(held)
    assert pool.grow(other, 5) == []
    assert other.ids[:2] == held.ids
    held.length = 3  # a partly filled last page is copied before it is written
    assert pool.grow(held, 4) == [(other.ids[1], held.ids[1])]


def test_pages_without_tokens_are_not_shared():
    pool = PagePool(pages=8, slots=2)
    held = Pages()
    pool.grow(held, 6)  # room for six tokens, three written
    held.length = 3
    assert len(pool.fork(held).ids) == 2
    assert [pool.holders[page] for page in held.ids] == [2, 2, 1]


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_common_prefix(head, a, b):
    a, b = head + a, head + b
    expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    assert common_prefix(a, b) == (min(len(a), len(b)) if expected is None else expected)
