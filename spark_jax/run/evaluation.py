"""Plays a fixed panel of tasks, an episode or a tree each, and says how they ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from spark_jax.envs.pool import EnvPool
from spark_jax.rollout.dialogue import Dialogue
from spark_jax.rollout.engine import Engine
from spark_jax.rollout.expand import grow_trees
from spark_jax.rollout.growing import Limits, TreeRule
from spark_jax.run.evalfile import EpisodeResult, episode_result
from spark_jax.types import Task, Tree


def play_panel(
    panel: Sequence[Task],
    params: Any,
    engine: Engine,
    environments: EnvPool,
    dialogue: Dialogue,
    rule: TreeRule,
    limits: Limits,
    seed: int,
    temperature: float,
    deterministic: bool = True,
    on_episode: Callable[[EpisodeResult], None] | None = None,
    sample: int = 0,
) -> list[EpisodeResult]:
    """One episode per task, in the order of the panel. With a `rule` of several leaves a tree is
    grown for each task, and the leaf that its leaves vote for is the episode (rollout/vote.py).

    The random keys depend on (seed, sample, task) and not on the parameters: two policies that
    play the same panel are compared under common random numbers.
    """
    engine.use(params, temperature)

    def tell(tree: Tree) -> None:
        if on_episode:
            on_episode(episode_result(tree))

    trees = grow_trees(
        panel, engine, environments, [dialogue] * len(panel),
        [rule] * len(panel), limits,
        (seed, "eval", sample), deterministic, tell,
    )  # fmt: skip
    return [episode_result(tree) for tree in trees]
