"""Several sampling engines that work like one: one for each copy of the parameters on a mesh.

Each has a cache and a queue of its own, on its own devices, and grows whole trees, since the paths
of a tree share pages. In a round all of them get their work before the first result is waited for,
so that they decode side by side. A row has the same random numbers on any of them.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from spark_jax.cache.pool import Pages
from spark_jax.models.sharding import part_of_params
from spark_jax.rollout.engine import Engine, EngineStats
from spark_jax.rollout.row import Row


class Engines:
    """See the module; methods and properties are those of `Engine`."""

    def __init__(self, engines: Sequence[Engine], parts: Sequence[Mesh]):
        """`parts`: the devices of each engine (models/sharding.py, `data_parts`)."""
        self._engines, self._parts = tuple(engines), tuple(parts)
        self.end_of_turn = engines[0].end_of_turn

    @property
    def capacity(self) -> int:
        return sum(engine.capacity for engine in self._engines)

    @property
    def busy(self) -> bool:
        return any(engine.busy for engine in self._engines)

    @property
    def stats(self) -> EngineStats:
        """Sums over the engines."""
        return functools.reduce(operator.add, (engine.stats for engine in self._engines))

    def device_bytes(self, params: Any) -> dict[str, int]:
        return self._engines[0].device_bytes(params)

    def use(self, params: Any, temperature: float) -> None:
        for engine, part in zip(self._engines, self._parts, strict=True):
            engine.use(part_of_params(params, part), temperature)

    def compile_all(self) -> int:
        return sum(engine.compile_all() for engine in self._engines)

    def add(self, row: Row) -> None:
        if row.pages.home < 0:  # the prompt of a tree: it stays where fewest paths are
            loads = [engine.load for engine in self._engines]
            row.pages.home = loads.index(min(loads))
        self._engines[row.pages.home].add(row)

    def fork(self, pages: Pages) -> Pages:
        return self._engines[pages.home].fork(pages)

    def keep(self, pages: Pages, tokens: int) -> None:
        self._engines[pages.home].keep(pages, tokens)

    def release(self, pages: Pages) -> None:
        self._engines[pages.home].release(pages)

    def rest(self) -> None:
        for engine in self._engines:
            engine.rest()

    def round(self) -> list[Row]:
        for engine in self._engines:
            engine.begin()
        return [row for engine in self._engines for row in engine.complete()]
