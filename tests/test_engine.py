"""The sampling engine against plain readable twins: dense logits, lone rows, tiny pools."""

import jax
import numpy as np
import pytest
from dense import dense_logits, dense_logprobs
from jax.sharding import SingleDeviceSharding
from native import NATIVE, needs_native

from spark_jax.models.config import ModelConfig
from spark_jax.models.layouts import turned
from spark_jax.models.transformer import init_params
from spark_jax.rollout import sampler
from spark_jax.rollout.engine import Engine
from spark_jax.rollout.engine_shape import EngineShape
from spark_jax.rollout.identity import row_key
from spark_jax.rollout.row import Row
from spark_jax.rollout.sampler import Sampler
from spark_jax.rollout.stops import stop_table
from spark_jax.types import UserError

CONFIG = ModelConfig(
    vocab_size=97, layers=2, width=32, heads=4, kv_heads=2, head_dim=8, feed_forward=48
)
TOKENS = [bytes([i]) for i in range(97)]
END = 96
NEVER = stop_table(TOKENS, ["\xff\xff"])


@pytest.fixture(scope="module")
def params():
    tree = init_params(CONFIG, jax.random.key(0))
    # Larger weights than the usual start, so that logits depend strongly on the whole context.
    return jax.tree.map(lambda x: x * 6 if x.ndim == 2 else x, tree)


def make_engine(params, stop=NEVER, temperature=1.0, **shape):
    sizes = dict(rows=8, slots=4, pages=256, path_tokens=96, chunk=5, prefill_tokens=48) | shape
    engine = Engine(Sampler(CONFIG, EngineShape(**sizes), stop, END))
    engine.use(params, temperature)
    return engine


def run(engine, rows):
    for row in rows:
        engine.add(row)
    done = []
    for _ in range(10_000):
        if not engine.busy:
            return done
        done += engine.round()
    raise AssertionError("the engine never came to an end")


def prompt(seed, n):
    return np.random.default_rng(seed).integers(0, 90, n).tolist()


@pytest.mark.parametrize(
    "slots,chunk,backend",
    [
        (4, 5, "xla"),
        (16, 5, "xla"),
        *(pytest.param(*sizes, "native", marks=NATIVE.marks) for sizes in ((4, 5), (16, 20))),
    ],
)
def test_sampled_logprobs_are_those_of_a_dense_pass(params, slots, chunk, backend):
    """Of rows that end one after the other."""
    engine = make_engine(
        params, slots=slots, chunk=chunk, backend=backend, pages=1024, temperature=0.7
    )
    rows = [Row(prompt(i, 3 + 9 * i), row_key(i), budget=4 + 7 * i) for i in range(6)]
    starts = [len(row.tokens) for row in rows]
    done = run(engine, rows)
    assert len(done) == 6
    for row, start in zip(rows, starts, strict=True):
        assert row.tokens[start:] == row.response
        expected = dense_logprobs(params, CONFIG, row.tokens, start, 0.7)
        np.testing.assert_allclose(row.logprobs, expected, atol=2e-5)


@needs_native
def test_a_cache_in_bfloat16_is_kept_as_bits_and_near_the_dense_pass(params):
    sizes = EngineShape(
        rows=8, slots=16, pages=256, path_tokens=96, chunk=8, prefill_tokens=48, backend="native"
    )
    engine = Engine(Sampler(CONFIG, sizes, NEVER, END, "bfloat16"))
    engine.use(params, 1.0)
    assert engine.kv[0][0].dtype == "uint16"
    rows = [Row(prompt(i, 3 + 9 * i), row_key(i), budget=4 + 7 * i) for i in range(6)]
    starts = [len(row.tokens) for row in rows]
    run(engine, rows)
    for row, start in zip(rows, starts, strict=True):
        expected = dense_logprobs(params, CONFIG, row.tokens, start)
        np.testing.assert_allclose(row.logprobs, expected, atol=0.3)
        assert np.abs(np.array(row.logprobs) - expected).max() > 1e-4, "it is rounded"


def test_forked_paths_share_pages_and_match_dense(params):
    engine = make_engine(params)
    root = Row(prompt(1, 22), row_key("root"), budget=0)
    run(engine, [root])
    assert engine.stats.prefill_tokens == 21
    children = [
        Row(list(root.tokens), row_key("child", i), 12, engine.fork(root.pages)) for i in range(3)
    ]
    engine.release(root.pages)
    run(engine, children)
    assert engine.stats.prefill_tokens == 21, "the shared prefix was computed once"
    grandchildren = []
    for i, child in enumerate(children):
        child.tokens += prompt(50 + i, 7)
        for j in range(2):
            pages = engine.fork(child.pages)
            grandchildren.append(Row(list(child.tokens), row_key("g", i, j), 9, pages))
        engine.release(child.pages)
    starts = [len(row.tokens) for row in grandchildren]
    run(engine, grandchildren)
    for row, start in zip(grandchildren, starts, strict=True):
        expected = dense_logprobs(params, CONFIG, row.tokens, start)
        np.testing.assert_allclose(row.logprobs, expected, atol=2e-5)
    for row in grandchildren:
        engine.release(row.pages)
    assert engine.pool.used_pages == 0


@pytest.mark.parametrize("share,slots", [(True, 16), (False, 4)])
@pytest.mark.parametrize("backend", ["xla", NATIVE])
def test_rows_that_read_a_long_prefix_together_match_dense(params, share, slots, backend):
    """300 tokens of prompt for eight rows, half of which share 40 more."""
    engine = make_engine(
        params, slots=slots, pages=512, path_tokens=400, prefill_tokens=128,
        share_prefix=share, backend=backend,
    )  # fmt: skip
    root = Row(prompt(1, 300), row_key("root"), budget=0)
    run(engine, [root])
    longer = Row([*root.tokens, *prompt(2, 40)], row_key("long"), 0, engine.fork(root.pages))
    run(engine, [longer])
    rows = [
        Row(list(source.tokens), row_key("leaf", i), 6, engine.fork(source.pages))
        for i, source in enumerate([root, longer] * 4)
    ]
    starts = [len(row.tokens) for row in rows]
    run(engine, rows)
    saved = 1 - engine.stats.read_tokens / engine.stats.row_tokens
    assert saved > 0.6 if share else saved == 0
    for row, start in zip(rows, starts, strict=True):
        expected = dense_logprobs(params, CONFIG, row.tokens, start)
        np.testing.assert_allclose(row.logprobs, expected, atol=2e-5)


def test_the_kernels_for_gpus_read_a_long_prefix_together(params):
    test_rows_that_read_a_long_prefix_together_match_dense(params, True, 16, "pallas_interpret")


def test_a_prefill_packs_groups_of_all_rows_and_pads_little(params):
    """Whole groups of whom they help most, as far as one prefill goes; the rest later."""
    engine = make_engine(params, pages=512, path_tokens=200, prefill_tokens=64)  # 4 groups
    rows = [Row(prompt(i, n + 1), row_key(i), budget=1) for i, n in enumerate((40, 30, 5))]
    for row in rows:
        engine.add(row)
    assert engine.round() == rows[2:]  # half of the four for the first, then the shortest
    assert [row.to_prefill for row in rows] == [8, 14, 0]
    assert len(engine.round()) == 2
    assert engine.stats.prefill_tokens == 75
    assert engine.stats.prefill_slots == 64 + 32
    for row in rows:
        expected = dense_logprobs(params, CONFIG, row.tokens, len(row.tokens) - 1)
        np.testing.assert_allclose(row.logprobs, expected, atol=2e-5)


def one_row(seed=3, budget=30):
    return Row(prompt(seed, 17), row_key("me", seed), budget=budget)


def test_a_row_is_the_same_alone_and_among_seven(params):
    shape = dict(rows=8)
    alone, among = one_row(), one_row()
    run(make_engine(params, **shape), [alone])
    others = [Row(prompt(10 + i, 5 + 6 * i), row_key("other", i), 5 + 9 * i) for i in range(7)]
    run(make_engine(params, **shape), [*others[:4], among, *others[4:]])
    assert alone.response == among.response
    np.testing.assert_allclose(alone.logprobs, among.logprobs, atol=1e-5)


def test_what_was_sampled_before_leaves_no_trace(params):
    """Not in the last bit: a resumed run begins with an empty engine."""
    engine = make_engine(params, slots=16, pages=512, path_tokens=560, prefill_tokens=256)

    def sample(seeds):
        rows = [Row(prompt(i, 60 + 130 * (i % 4)), row_key(i), budget=12) for i in seeds]
        for row in run(engine, rows):
            engine.release(row.pages)
        return [(row.response, row.logprobs) for row in rows]

    first = sample(range(6))
    sample([9, 3, 14, 7, 6])
    assert sample(range(6)) == first


def test_key_and_position_decide_not_the_order_of_calls(params):
    first, second = one_row(), Row(prompt(3, 17), row_key("someone else"), 30)
    run(make_engine(params), [first, second])
    assert first.response != second.response
    again = one_row()
    engine = make_engine(params, chunk=3)
    run(engine, [Row(prompt(4, 9), row_key("before"), 11)])
    run(engine, [again])
    assert again.response == first.response


@pytest.mark.parametrize("shape", [dict(slots=16), dict(rows=32), dict(path_tokens=400)])
def test_other_page_sizes_and_buckets_agree_within_tolerance(params, shape):
    here, there = one_row(), one_row()
    run(make_engine(params), [here])
    run(make_engine(params, **dict(pages=512) | shape), [there])
    same = sum(1 for _ in takewhile_equal(here.response, there.response))
    # Up to the first difference the log-probabilities agree; a difference needs a near tie,
    # which this seed does not have.
    np.testing.assert_allclose(here.logprobs[:same], there.logprobs[:same], atol=1e-5)
    assert same == len(here.response)


def takewhile_equal(a, b):
    for x, y in zip(a, b, strict=False):
        if x != y:
            return
        yield x


def test_greedy_takes_the_best_token(params):
    row = one_row(budget=6)
    run(make_engine(params, temperature=0.0), [row])
    best = dense_logits(params, CONFIG, row.tokens).argmax(-1)
    assert best[16:-1].tolist() == row.tokens[17:] and len(row.tokens) == 17 + 6


def test_samples_follow_the_distribution(params):
    engine = make_engine(params, rows=64, pages=1024)
    tokens = prompt(7, 6)
    rows = [Row(list(tokens), row_key("many", i), 1) for i in range(2048)]
    run(engine, rows)
    p = np.asarray(jax.nn.softmax(dense_logits(params, CONFIG, tokens)[-1]))
    seen = np.bincount([row.response[0] for row in rows], minlength=97) / 2048
    # Total variation; sampling noise alone gives about 0.08 with 97 tokens and 2,048 draws.
    assert 0.5 * np.abs(seen - p).sum() < 0.12


def test_stops_at_a_tag_cut_anywhere_and_at_end_of_turn(params):
    stop = stop_table([b"<", b"/ac", b"tion", b">x", b"a", b"</action>"], ["</action>"])
    accept = stop.shape[0] - 1
    state = 0
    for token in [4, 0, 0, 1, 2]:
        state = stop[state, token]
        assert state != accept
    assert stop[state, 3] == accept, "a token may complete the tag and go on"
    assert stop[0, 5] == accept and stop[accept, 4] == accept
    first = one_row()
    run(make_engine(params), [first])
    target = first.response[4]  # declare this token a stop pattern
    cut = one_row()
    run(make_engine(params, stop=stop_table(TOKENS, [chr(target)])), [cut])
    assert cut.response == first.response[: first.response.index(target) + 1]


def test_a_tiny_pool_waits_evicts_and_still_gives_the_same(params):
    def work():
        return [Row(prompt(i, 10 + i), row_key("w", i), 14) for i in range(7)]

    roomy, tight = make_engine(params), make_engine(params, pages=14)
    a, b = work(), work()
    run(roomy, a)
    run(tight, b)
    for row in b:  # second step of every path: the pages of all do not fit together
        row.tokens += [1, 2, 3]
    starts = [len(row.tokens) for row in b]
    again = [Row(list(row.tokens), row_key("x", i), 9, row.pages) for i, row in enumerate(b)]
    run(tight, again)
    assert [r.response for r in a] == [r.response for r in b]
    assert tight.stats.evictions > 0
    for row, start in zip(again, starts, strict=True):
        expected = dense_logprobs(params, CONFIG, row.tokens, start)
        np.testing.assert_allclose(row.logprobs, expected, atol=2e-5)
        tight.release(row.pages)
    assert tight.pool.used_pages == 0


def test_a_chunk_ends_early_when_rows_have_ended(params):
    engine = make_engine(params, chunk=8, prefill_tokens=128)
    engine.end_of_turn = CONFIG.vocab_size  # never sampled: only budgets end rows
    rows = [Row(prompt(i, 5), row_key(i), 20 if i else 3) for i in range(8)]
    for row in rows:
        engine.add(row)
    assert engine.round() == rows[:1]
    assert {len(row.response) for row in rows} == {3}
    assert engine.round() == []
    assert {len(row.response) for row in rows[1:]} == {3 + 8}


def test_a_prefill_is_cut_into_programs_that_are_full(params):
    """Seven groups of 16 tokens: programs for 4, 2 and 1, not one for 8."""
    engine = make_engine(params, pages=512, path_tokens=200, prefill_tokens=128)
    row = Row(prompt(0, 7 * 16 + 1), row_key(0), budget=1)
    run(engine, [row])
    assert engine.stats.prefill_slots == engine.stats.prefill_tokens == 7 * 16
    np.testing.assert_allclose(
        row.logprobs, dense_logprobs(params, CONFIG, row.tokens, len(row.tokens) - 1), atol=2e-5
    )


def test_a_path_that_can_never_fit_is_refused(params):
    engine = make_engine(params, pages=8)
    with pytest.raises(UserError, match=r"rollout\.pages"):
        engine.add(Row(prompt(0, 30), row_key(0), 30))


@pytest.mark.parametrize(
    "placed,backend", [(False, "xla"), (True, "xla"), (True, "pallas_interpret")]
)
def test_no_program_is_compiled_after_the_start(params, placed, backend):
    """`placed`: parameters are on their device for good, as those of a run are."""
    if placed:
        params = jax.device_put(params, SingleDeviceSharding(jax.devices()[0]))
    engine = make_engine(params, backend=backend)
    rooms, tiles = set(), engine.sampler.tiles

    def watched(rows, B):
        lists = tiles(rows, B)
        rooms.add((B, len(lists.own.start_U)))
        return lists

    engine.sampler.tiles = watched
    compiled = []
    engine.compile_all()
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **kw: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        for _ in range(2):  # between the two all paths are over
            rows = [Row(prompt(i, 3 + 4 * i), row_key(i), 3 + 2 * i) for i in range(12)]
            run(engine, rows)
            for row in rows:
                engine.release(row.pages)
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == []
    several = len(rooms) > len({B for B, _ in rooms})
    assert several == (backend == "pallas_interpret"), "the paths are all short or all long"


def test_weights_cannot_change_under_a_living_path(params):
    engine = make_engine(params)
    row = one_row(budget=2)
    run(engine, [row])
    with pytest.raises(ValueError, match="holds pages"):
        engine.use(params, 1.0)
    engine.release(row.pages)
    engine.use(params, 1.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_xla_neither_copies_nor_converts_the_cache(params, monkeypatch, dtype):
    """It is read inside the loop of a chunk and written after it."""
    texts = []

    def listening(program):
        def call(*arguments, **options):
            texts.append(program.lower(*arguments, **options).compile().as_text())
            return program(*arguments, **options)

        return call

    for name in ("prefill", "decode_chunk"):
        monkeypatch.setattr(sampler, name, listening(getattr(sampler, name)))
    shape = EngineShape(rows=2, slots=16, pages=33, path_tokens=96, chunk=4, backend="xla")
    engine = Engine(Sampler(CONFIG, shape, NEVER, END, dtype))
    engine.use(params, 1.0)
    engine.compile_all()
    assert len(texts) > 2
    whole = f"[{','.join(map(str, engine.kv[0][0].shape))}]"
    for text in texts:
        assert text.count(whole)
        found = [x for x in text.splitlines() if " copy(" in x or " convert(" in x]
        assert not [x for x in found if whole in x]


def test_weights_are_laid_out_once_for_a_rollout(params, monkeypatch):
    """Not once for each tree, where one at a time is open. No copy of them outlasts it."""
    calls = []
    monkeypatch.setattr(
        "spark_jax.rollout.sampler.turned", lambda params: calls.append(1) or turned(params)
    )
    engine = make_engine(params)
    for rollout in range(2):
        for tree in range(3):
            row = one_row(seed=tree, budget=2)
            run(engine, [row])
            engine.release(row.pages)
            assert engine.pool.used_pages == 0 and len(calls) == rollout + 1
        engine.rest()
        assert engine.sampler._weights is None
    row = one_row(budget=2)
    run(engine, [row])
    engine.release(row.pages)
    other = jax.tree.map(lambda x: x + 0.1, params)
    engine.use(other, 1.0)
    row = one_row(budget=2)
    run(engine, [row])
    expected = dense_logprobs(other, CONFIG, row.tokens, 17)
    np.testing.assert_allclose(row.logprobs, expected, atol=2e-5)
