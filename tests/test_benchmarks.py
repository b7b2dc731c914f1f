"""The recorded workload, and that our engine does all of it and nothing twice."""

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import limits, measured, scaling
from benchmarks.engines import ours, requests
from benchmarks.model import SHAPES, load_benchmark_model
from benchmarks.rollout import WORKLOAD, table
from benchmarks.workload import Shape, load
from spark_jax.models.config import parameter_count

#            0 ─ 1 ─┬─ 2
#                   └─ 3 ─ 4        and a second root, 5
SMALL = Shape([-1, 0, 1, 1, 3, 0], [0, 5, 20, 1, 3, 7], [40, 6, 2, 9, 2, 3])
CHAIN = Shape([-1, 0], [0, 4], [8, 1])


def test_a_shape_knows_its_paths():
    assert SMALL.children == [[1, 5], [2, 3], [], [4], [], []]
    assert SMALL.leaves == [2, 4, 5]
    assert SMALL.path(4) == [0, 1, 3, 4]
    assert SMALL.response_tokens == 36
    assert SMALL.longest() == 40 + 11 + 22
    episodes = SMALL.separate()
    assert [e.response for e in episodes] == [[0, 5, 20], [0, 5, 1, 3], [0, 7]]
    assert episodes[1].parent == [-1, 0, 1, 2] and episodes[1].context == [40, 6, 9, 2]


@pytest.mark.parametrize("name", ["scienceworld", "scienceworld_instructions"])
def test_the_recorded_trees_are_trees(name):
    trees = load(WORKLOAD.with_stem(name))
    assert len(trees) == 16
    for tree in trees:
        assert tree.parent[0] == -1 and tree.response[0] == 0 and tree.context[0] > 50
        assert all(0 <= parent < node for node, parent in enumerate(tree.parent[1:], 1))
        assert all(n > 0 for n in tree.response[1:]) and len(tree.leaves) <= 8
    assert any(len(below) > 1 for tree in trees for below in tree.children[1:])


@pytest.fixture(scope="module")
def model():
    return load_benchmark_model("nano", "float32")


@pytest.mark.parametrize("share", [True, False])
def test_our_engine_does_the_whole_workload_once(model, share):
    trees = [SMALL, CHAIN, SMALL]
    engine = ours.make_engine(model, 4, 96, share_prefix=share)
    measured = ours.play(engine, trees)
    assert measured.computed_tokens == sum(tree.response_tokens for tree in trees)
    # Every context that a response follows, once; the last token of it is fed by decoding.
    assert measured.prefill_tokens == 2 * (40 - 1 + 6 + 9) + (8 - 1)
    assert 0 <= measured.host_share < 1 and 0 <= measured.wasted < 1
    apart = ours.play(engine, [s for tree in trees for s in tree.separate()])
    assert apart.computed_tokens == 2 * (25 + 9 + 7) + 4
    assert engine.pool.used_pages == 0


class Oracle:
    """A server that answers the newest request first and keeps what it was asked."""

    def __init__(self, short=()):
        self.open, self.asked, self.most, self.short = [], {}, 0, short

    def submit(self, name, tokens, new):
        self.open.append((name, [7] * (new - (name in self.short))))
        self.asked[name] = tokens
        self.most = max(self.most, len(self.open))

    def collect(self):
        return [self.open.pop()]


def test_a_server_gets_every_response_of_a_tree_once():
    server = Oracle()
    played = requests.play(server, [SMALL, CHAIN], rows=2, vocab_size=5, limit=math.inf)
    assert played.computed_tokens == 36 + 4 and played.share == 1
    assert sorted(server.asked) == ["0-1", "0-2", "0-3", "0-4", "0-5", "1-1"]
    assert server.most == 2
    assert len(server.asked["0-4"]) == 40 + 5 + 6 + 1 + 9
    assert server.asked["0-2"] == server.asked["0-3"]
    assert server.asked["0-3"][:45] == server.asked["0-1"] + [7] * 5
    with pytest.raises(RuntimeError, match="19 tokens came back where 20"):
        requests.play(Oracle(short=["0-2"]), [SMALL], rows=2, vocab_size=5, limit=math.inf)


def test_the_watch_stands_still_while_a_peer_compiles(monkeypatch):
    clock = iter([10, 15, 17])
    monkeypatch.setattr(measured.time, "perf_counter", lambda: next(clock))
    watch = measured.Watch(wanted=8, start=0)
    with watch.stopped():
        pass
    assert watch.seconds == 12


def test_a_slow_peer_is_measured_by_what_it_did_until_its_time_was_over(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(measured.time, "perf_counter", lambda: next(clock))
    watch = measured.Watch(wanted=8, limit=2.5, start=0)
    seen = []
    while not watch.over:
        watch.written += 3
        seen.append(watch.seconds)
    assert seen == [1, 3]
    assert watch.measured(computed_tokens=7) == measured.Measured(5, 7, share=6 / 8)

    monkeypatch.undo()
    stopped = requests.play(Oracle(), [SMALL], rows=2, vocab_size=5, limit=0.0)
    assert stopped.share == 0
    row = {"engine": "tunix", "rows": 8, "seconds": 30.0, "share": 0.25, "peak_gb": 1.0}
    row |= {"host_share": math.nan, "wasted": math.nan, "computed_tokens": 40}
    best = row | {"engine": "tree", "seconds": 4.0, "share": 1.0, "least_seconds": 2.0}
    assert "| tunix sampler | 8 | about 120 (stopped after 30 with 25%) | 1 | 2% |" in table(
        [best, row], unique=120
    )


@pytest.mark.parametrize(
    "name, millions", [("smollm2", 134.5), ("qwen1.5b", 1543.7), ("qwen7b", 7615.6)]
)
def test_shapes_with_random_weights_are_those_of_the_models(name, millions):
    """Numbers of parameters as on the models' pages."""
    assert parameter_count(SHAPES[name]) / 1e6 == pytest.approx(millions, abs=0.1)


def test_least_time_by_hand(model):
    c = model.config
    known = limits.Limits(1e9, 2e9, 4e9)
    p = limits.parameter_count(c)
    body = p - c.vocab_size * c.width
    assert c.tied
    attended = 4 * 8 + 4 * 5 // 2
    by_flops = (2 * p * 4 + 4 * c.layers * c.heads * c.head_dim * attended) / 2e9
    prefill = 2 * body * (8 + 1) / 4e9
    got = limits.least_seconds(c, [CHAIN], 4, read_tokens=10, limits=known)
    assert got == pytest.approx(
        max(by_flops, (p * 4 + 10 * limits.cached_bytes(c)) / 1e9) + prefill
    )


def test_the_table_says_why_something_was_not_measured():
    rows = [
        {"engine": "tree", "rows": 8, "least_seconds": 2.0, "host_share": 0.01, "wasted": 0.1}
        | {"seconds": 4.0, "computed_tokens": 100, "peak_gb": 1.0},
        {"engine": "episodes", "rows": 8, "reason": "not installed: torch"},
    ]
    text = table(rows, unique=100)
    assert "| ours | 8 | 4.0 | 25 | 50% |" in text
    assert "not measured: not installed: torch" in text


def test_synthetic_trees_share_three_quarters_of_their_steps():
    wide = scaling.tree(4, 12)
    assert len(wide.leaves) == 4
    assert wide.response_tokens == (9 + 4 * 3) * scaling.RESPONSE
    assert {len(wide.path(leaf)) for leaf in wide.leaves} == {13}
    assert scaling.tree(1, 3).response_tokens == 3 * scaling.RESPONSE
    assert len(scaling.tree(8, 1).leaves) == 8


def test_the_scaling_series_counts_unique_and_separate_tokens(model, tmp_path):
    (point,) = scaling.series(model, 4, [(2, [scaling.tree(2, 4)])])
    assert point.unique_tokens == (3 + 2) * scaling.RESPONSE
    assert point.episode_tokens == 2 * 4 * scaling.RESPONSE
    assert "| 2 | 120 | 192 |" in scaling.table("leaves", [point])
    scaling.plot({"leaves": [point]}, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().startswith("<?xml")


def test_prompt_tokens_of_a_step():
    from benchmarks.history import table
    from spark_jax.envs.window import Window
    from spark_jax.models.presets import load_model
    from spark_jax.run import warmup
    from spark_jax.types import Task

    def said(action):
        return f"<think></think><action>{action}</action>"

    turns = [(said(f"go {place}"), f"A {place}.") for place in ("shed", "barn", "yard")]
    example = warmup.Example(Task("toy", "x", 0), "", "find it, " * 20, turns)
    codec = load_model("nano", texts=warmup.texts([example])).codec
    text = table([example], codec, Window(1))
    assert text.startswith("1 paths, 3 steps, env.history=1, env.prompt=short")
    dialogue, whole, kept = (float(line.split("|")[2].split()[0]) for line in text.splitlines()[4:])
    # Three prompts with the long head; only one of them has to compute it.
    head = len(codec.encode_response("find it, " * 20))
    assert whole > head and dialogue < kept < whole - 0.6 * head
