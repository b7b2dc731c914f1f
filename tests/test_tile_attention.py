"""Prefix-shared attention: the tiles cover every page of every row once, and the result is that of
the plain reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native import NATIVE, arranged

from spark_jax.cache.tiles import (
    SHARED_ROWS,
    WORTH_NATIVE,
    WORTH_TILES,
    make_tiles,
    pages_of_tile,
    trimmed,
)
from spark_jax.ops.paged_attention import gathered_attention, paged_attention
from spark_jax.ops.tile_attention import NOBODY, tile_attention


def forest(rng, rows, most, trees=2):
    """Page tables of the leaves of random trees: each row copies a head of an earlier row of its
    tree and goes on alone."""
    tables, fresh = [], iter(rng.permutation(np.arange(1, rows * most + 1)).tolist())
    for b in range(rows):
        earlier = [t for i, t in enumerate(tables) if i % trees == b % trees]
        head = []
        if earlier:
            other = earlier[rng.integers(len(earlier))]
            head = other[: rng.integers(0, len(other) + 1)]
        own = int(rng.integers(0 if head else 1, most - len(head) + 1))
        tables.append(head + [next(fresh) for _ in range(own)])
    return tables


def seen_by_rows(lists, rows, slots):
    """[(position of the page, page)] that each row reads, in order of position."""
    seen = [[] for _ in range(rows)]
    for tiles in lists:
        for u in range(int(tiles.count)):
            for i in range(int(tiles.tokens_U[u]) // slots):
                for row in tiles.row_UR[u]:
                    if row < rows:
                        at = int(tiles.start_U[u]) // slots + i
                        seen[row].append((at, int(tiles.page_UW[u, i])))
    return [sorted(s) for s in seen]


def attend_pages(q, k, v, tiles, length_B, recent=None, backend="xla"):
    """`tile_attention`, with no tokens outside the pages unless they are given."""
    if recent is None:
        nothing = jnp.zeros((q.shape[0], k.shape[2], 1, k.shape[3]), k.dtype)
        recent = nothing.swapaxes(2, 3), nothing, 0
    return tile_attention(q, arranged(k, v, backend), tiles, length_B, recent, backend)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 20),
    most=st.integers(1, 40),
    slots=st.sampled_from([4, 16, 128, 256]),
    share=st.booleans(),
)
def test_every_row_reads_each_of_its_pages_once(seed, rows, most, slots, share):
    tables = forest(np.random.default_rng(seed), rows, most)
    lists = make_tiles(tables, rows + 2, most, slots, share)
    seen = seen_by_rows(lists, rows + 2, slots)
    assert seen == [list(enumerate(table)) for table in tables] + [[], []]
    for tiles in lists:  # what is not used must not be read
        assert (tiles.row_UR[int(tiles.count) :] == rows + 2).all()
        assert (tiles.tokens_U[int(tiles.count) :] == 0).all()
    if not share:
        assert lists.shared.count == 0


def test_what_all_rows_share_is_read_once():
    slots = 16
    prompt = list(range(1, 41))  # 40 pages: 5 tiles
    tables = [[*prompt, 100 + b] for b in range(SHARED_ROWS)]
    lists = make_tiles(tables, SHARED_ROWS, 48, slots)
    assert lists.shared.count == 5
    assert lists.own.count == SHARED_ROWS
    apart = make_tiles(tables, SHARED_ROWS, 48, slots, share=False)
    assert apart.own.count == SHARED_ROWS * -(-41 // pages_of_tile(slots))


def test_nested_prefixes_are_shared_level_by_level():
    trunk, left, right = list(range(1, 25)), list(range(30, 54)), list(range(60, 84))
    tables = [[*trunk, *(left if b % 2 else right), 100 + b] for b in range(7)]
    tables.append([*trunk, *left])
    shared = make_tiles(tables, 8, 64, 16).shared
    groups = {
        (int(shared.start_U[u]), tuple(sorted(r for r in shared.row_UR[u].tolist() if r < 8)))
        for u in range(int(shared.count))
    }
    whole = {(start, tuple(range(8))) for start in (0, 128, 256)}
    branches = {(start, rows) for start in (384, 512, 640) for rows in ((0, 2, 4, 6), (1, 3, 5, 7))}
    assert groups == whole | branches


def test_short_or_lonely_prefixes_are_not_worth_a_tile():
    pair = [[*range(1, 25), 100], [*range(1, 25), 101]]
    short = [[1, 100 + b] for b in range(8)]
    for tables in (pair, short):
        assert make_tiles(tables, 8, 64, 16).shared.count == 0


def test_more_rows_than_a_tile_takes_are_spread_over_several():
    tables = [[*range(1, 9), 100 + b] for b in range(SHARED_ROWS + 3)]
    shared = make_tiles(tables, 16, 16, 16).shared
    members = [sum(r < 16 for r in shared.row_UR[u].tolist()) for u in range(int(shared.count))]
    assert members == [SHARED_ROWS, 3]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("heads,kv_heads", [(4, 2), (6, 1), (3, 3)])
@pytest.mark.parametrize(
    "slots,backend",
    [
        (4, "xla"),
        (16, "xla"),
        (16, "pallas_interpret"),
        *(pytest.param(slots, "native", marks=NATIVE.marks) for slots in (4, 16, 32)),
    ],
)
def test_attention_over_tiles_is_that_of_the_reference(share, heads, kv_heads, slots, backend):
    for seed in range(2):
        rng = np.random.default_rng(seed)
        rows, most, B, C = 11, 1280 // slots, 16, 8
        tables = forest(rng, rows, most, trees=1)
        pages = 1 + rows * most
        k, v = rng.normal(size=(2, pages, slots, kv_heads, C)).astype(np.float32)
        q = 3 * rng.normal(size=(B, heads, C)).astype(np.float32)
        table_BW = np.zeros((B, most), np.int32)
        position_B = np.zeros(B, np.int32)
        for b, table in enumerate(tables):
            table_BW[b, : len(table)] = table
            position_B[b] = rng.integers(0, len(table) * slots)  # the rest is not written yet
        worth = WORTH_NATIVE if backend == "native" else WORTH_TILES
        tiles = make_tiles(tables, B, most, slots, share, worth)
        assert bool(tiles.shared.count) == share
        attend = jax.jit(functools.partial(attend_pages, backend=backend))
        length_B = np.where(np.arange(B) < rows, position_B + 1, 0)
        out, lse = attend(q, k, v, tiles, length_B)
        for reference in (gathered_attention, paged_attention):
            pages = (k, v) if reference is gathered_attention else arranged(k, v, "xla")
            wanted, wanted_lse = jax.jit(reference)(
                q[:, None], *pages, table_BW, position_B[:, None]
            )
            np.testing.assert_allclose(out[:rows], wanted[:rows, 0], rtol=2e-5, atol=2e-6)
            np.testing.assert_allclose(lse[:rows], wanted_lse[:rows, 0], rtol=2e-5, atol=2e-6)
        assert np.isfinite(out).all() and (out[rows:] == 0).all()  # rows of padding


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_lowers_for_a_gpu(dtype):
    """It cannot run here, but every operation in it exists in Triton."""
    tiles = make_tiles([[*range(1, 41), 100 + b] for b in range(8)], 8, 48, 16)
    q = jax.ShapeDtypeStruct((8, 12, 128), dtype)
    kv = jax.ShapeDtypeStruct((200, 16, 2, 128), dtype)
    attend = jax.jit(functools.partial(attend_pages, backend="pallas"))
    unchecked = jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
    program = jax.export.export(attend, platforms=["cuda"], disabled_checks=[unchecked])(
        q, kv, kv, tiles, jax.ShapeDtypeStruct((8,), np.int32)
    )
    assert program.mlir_module().count("__gpu$xla.gpu.triton") == 2  # shared tiles and own ones


def test_the_kernel_does_not_cut_float32_to_tf32():
    """As Triton does with a product that names no precision."""
    kv = np.zeros((2, 16, 1, 16), np.float32)
    attend = functools.partial(attend_pages, backend="pallas")
    program = str(
        jax.make_jaxpr(attend)(kv[:1, 0], kv, kv, make_tiles([[1]], 1, 8, 16), np.ones(1))
    )
    # Two in each kernel: for shared tiles and for own ones.
    assert program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 4


def test_the_kernel_says_what_sizes_it_takes():
    tiles = make_tiles([[1]], 1, 1, 16)
    k = np.zeros((2, 16, 1, 24), np.float32)
    with pytest.raises(ValueError, match="24 channels of a head: the kernel needs a power of two"):
        attend_pages(k[:1, 0], k, k, tiles, np.ones(1, np.int32), backend="pallas_interpret")


def test_lists_have_no_more_room_than_a_rung_that_holds_them():
    """What the kernels for GPUs compute is for every place, used or not."""
    rungs = ((8, 4), (1, 1))
    prompt, table = list(range(1, 17)), 64  # pages of 16 tokens, eight to a tile
    short = make_tiles([[*prompt, 100 + b] for b in range(16)], 16, table, 16)
    small = trimmed(short, rungs)
    assert (short.shared.count, short.own.count) == (4, 16)
    assert [len(some.start_U) for some in small] == [32 // 8, 128 // 4]
    assert seen_by_rows(small, 16, 16) == seen_by_rows(short, 16, 16)
    more_prompt = make_tiles([[*range(1, 26), 100 + b] for b in range(16)], 16, table, 16)
    long = make_tiles([list(range(64 * b, 64 * b + 33)) for b in range(16)], 16, table, 16)
    assert more_prompt.shared.count > 4 and long.own.count > 32
    for lists in (more_prompt, long):
        assert [len(some.start_U) for some in trimmed(lists, rungs)] == [32, 128]
        assert [len(some.start_U) for some in trimmed(lists, rungs[1:])] == [32, 128]


def test_a_full_list_of_tiles_counts_none_twice():
    """15 tiles in use of 15, looked at 8 at a time."""
    rng = np.random.default_rng(0)
    most, slots = 40, 16
    tables = [list(range(1 + b * most, 1 + (b + 1) * most)) for b in range(3)]
    k, v = rng.normal(size=(2, 121, slots, 1, 4)).astype(np.float32)
    q = rng.normal(size=(3, 2, 4)).astype(np.float32)
    tiles = make_tiles(tables, 3, most, slots)
    assert tiles.own.count == len(tiles.own.start_U) == 15
    position_B = np.full(3, most * slots - 1, np.int32)
    out, lse = jax.jit(attend_pages)(q, k, v, tiles, position_B + 1)
    wanted, wanted_lse = gathered_attention(q[:, None], k, v, np.array(tables), position_B[:, None])
    np.testing.assert_allclose(out, wanted[:, 0], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(lse, wanted_lse[:, 0], rtol=2e-5)


@pytest.mark.parametrize(
    "backend,X,shown",
    [
        ("xla", 5, 3),
        ("pallas_interpret", 5, 3),
        *(pytest.param("native", *x, marks=NATIVE.marks) for x in ((5, 3), (16, 1), (48, 17))),
    ],
)
def test_tokens_that_are_not_in_pages_yet_count_like_the_others(backend, X, shown):
    """Some rows have nothing in pages at all; a row that nobody wants disturbs no other."""
    rng = np.random.default_rng(0)
    rows, most, slots = 6, 20, 16
    tables = forest(rng, rows, most)
    length_B = np.array([len(table) * slots - X for table in tables])
    length_B[2:5] = 0, 1, NOBODY
    k, v = rng.normal(size=(2, 1 + rows * most, slots, 2, 8)).astype(np.float32)
    q = rng.normal(size=(rows, 4, 8)).astype(np.float32)
    recent = rng.normal(size=(2, rows, 2, X, 8)).astype(np.float32)
    k_BKCX, v_BKXC = recent[0].swapaxes(2, 3), recent[1]
    tiles = make_tiles(tables, rows, most, slots)
    attend = jax.jit(functools.partial(attend_pages, backend=backend))
    out, lse = attend(q, k, v, tiles, length_B, (k_BKCX, v_BKXC, shown))
    assert np.isfinite(out).all()
    for b, table in enumerate(tables):  # the same row with all its tokens in pages
        if length_B[b] == NOBODY:
            continue
        both = [
            np.concatenate([pages[table].reshape(-1, 2, 8)[: length_B[b]], new[b].swapaxes(0, 1)])
            for pages, new in zip((k, v), recent, strict=True)
        ]
        last = np.array([[length_B[b] + shown - 1]])
        wanted, wanted_lse = gathered_attention(
            q[b, None, None], *(x[:, None] for x in both), np.arange(len(both[0]))[None], last
        )
        np.testing.assert_allclose(out[b], wanted[0, 0], rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(lse[b], wanted_lse[0, 0], rtol=2e-5, atol=2e-6)
