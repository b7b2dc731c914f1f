"""Our engine on a recorded workload: same trees, forced lengths, any token may be sampled."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.measured import Measured
from benchmarks.workload import Shape
from spark_jax.cache.pool import Pages
from spark_jax.models.presets import Model
from spark_jax.ops.gpu_trial import pick
from spark_jax.rollout.engine import Engine
from spark_jax.rollout.engine_shape import EngineShape, attention_sizes
from spark_jax.rollout.identity import row_key
from spark_jax.rollout.row import Row
from spark_jax.rollout.sampler import Sampler

NEVER = -1  # an end-of-turn token that no vocabulary has


def make_engine(
    model: Model, rows: int, path_tokens: int, share_prefix: bool, backend: str = "auto"
) -> Engine:
    """An engine whose rows end only where their allowance does."""
    slots, chunk = 16, 16
    pages_of_a_path = -(-(path_tokens + chunk) // slots)
    shape = EngineShape(
        rows=rows,
        slots=slots,
        pages=1 + 2 * rows * (pages_of_a_path + 2),
        path_tokens=path_tokens,
        chunk=chunk,
        prefill_tokens=max(256, 32 * rows),  # as run/policy.py
        share_prefix=share_prefix,
        backend=pick(backend, False, attention_sizes(model.config, slots, model.config.dtype))[0],
    )
    never = np.zeros((2, model.config.vocab_size), np.int32)  # state 0 stays, 1 accepts
    engine = Engine(Sampler(model.config, shape, never, NEVER, model.config.dtype))
    engine.use(model.params, 1.0)
    engine.compile_all()
    return engine


@dataclasses.dataclass(eq=False)
class _Node:
    tree: int
    node: int


def play(engine: Engine, trees: Sequence[Shape]) -> Measured:
    """Grows the trees: environments answer at once, forks share what comes before them."""
    rng = np.random.default_rng(0)
    vocab = engine.config.vocab_size
    contexts = [[rng.integers(0, vocab, n).tolist() for n in tree.context] for tree in trees]
    children = [tree.children for tree in trees]
    engine.stats = type(engine.stats)()
    unopened, alive = list(range(len(trees))), 0
    owner: dict[Row, _Node] = {}
    forks: dict[Row, list[_Node]] = {}  # siblings that wait for the prefix of child 0

    def add(tree: int, node: int, tokens, pages: Pages, keep: bool = False) -> Row:
        budget = trees[tree].response[node]
        row = Row(list(tokens), row_key(tree, node), budget, pages, keep_prefix=keep)
        owner[row] = _Node(tree, node)
        engine.add(row)
        return row

    start = time.perf_counter()
    while unopened or owner:
        while unopened and alive < engine.shape.rows:
            tree = unopened.pop(0)
            alive += len(children[tree][0])
            add(tree, 0, contexts[tree][0], Pages())
        for row in engine.round():
            at = owner.pop(row)
            below = children[at.tree][at.node]
            if not below:
                engine.release(row.pages)
                alive -= 1
                continue
            tokens = row.tokens if at.node == 0 else row.tokens + contexts[at.tree][at.node]
            first = add(at.tree, below[0], tokens, row.pages, keep=len(below) > 1)
            alive += len(below) - 1 if at.node else 0
            if len(below) > 1:
                forks[first] = [_Node(at.tree, node) for node in below[1:]]
        for first in [row for row in forks if row.prefix is not None]:
            # Until here the row's tokens may have grown: its prefix is what came before.
            known = first.tokens[: len(first.tokens) - len(first.response)]
            for sibling in forks.pop(first):
                add(sibling.tree, sibling.node, known, engine.fork(first.prefix))
            engine.release(first.prefix)
            first.prefix, first.keep_prefix = None, False
    engine.rest()  # as a rollout ends: the next one lays its weights out again
    seconds = time.perf_counter() - start
    if engine.pool.used_pages:
        raise RuntimeError("pages were left behind")
    stats = engine.stats
    return Measured(
        seconds=seconds,
        computed_tokens=stats.response_tokens,
        prefill_tokens=stats.prefill_tokens,
        host_share=1.0 - stats.device_seconds / seconds,
        wasted=1.0 - stats.response_tokens / max(1, stats.decode_rows),
        read_tokens=stats.read_tokens,
    )
