"""Evaluation within a run: the panels of its splits, played, recorded, or taken over."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from spark_jax.envs.tasks import panel
from spark_jax.run import borrow
from spark_jax.run.evalfile import (
    AFTER_WARMUP,
    EpisodeResult,
    add_evaluation,
    eval_metrics,
    settings,
)
from spark_jax.run.evaluation import play_panel
from spark_jax.run.policy import episode_rule, limits
from spark_jax.run.progress import Progress
from spark_jax.run.state import Run


def play(this: Run, split: str, episodes: int, params: Any, on_episode=None):
    """Plays the panel of `episodes` tasks of `split` (0: all of them), one episode each."""
    config = this.config
    tasks = this.world.splits[split]
    chosen = panel(tasks, episodes or len(tasks), 0)  # one panel for all seeds
    return play_panel(
        chosen, params, this.engine, this.environments, this.dialogue,
        episode_rule(config), limits(config), config.seed, config.eval.temperature,
        config.rollout.deterministic, on_episode,
    )  # fmt: skip


def evaluate(this: Run, name: str, params: Any) -> None:
    """Plays the panels of all splits and records them in eval.json and metrics.jsonl."""
    config, splits = this.config, {}
    start = time.perf_counter()
    for split in config.eval.splits:
        total = _panel_size(this, split)
        with Progress(f"{name}, {split}", total, "episode") as progress:
            tell = _episode_counter(progress, total)
            splits[split] = play(this, split, config.eval.episodes, params, tell)
    entry = add_evaluation(
        this.workdir, name, this.state.step, config.eval.temperature, splits,
        settings=settings(config, name),
    )  # fmt: skip
    values = eval_metrics(entry) | {"time/eval_s": time.perf_counter() - start}
    this.metrics.write(this.state.step, "eval", values)
    this.state.evaluated.append(name)


def _panel_size(this: Run, split: str) -> int:
    tasks = this.world.splits[split]
    return min(this.config.eval.episodes or len(tasks), len(tasks))


def _episode_counter(progress: Progress, total: int) -> Callable[[EpisodeResult], None]:
    """Reports each episode on a terminal, and elsewhere all of them in one line."""
    successes = seen = 0

    def tell(result: EpisodeResult) -> None:
        nonlocal successes, seen
        successes, seen = successes + result.success, seen + 1
        if progress.is_terminal or seen == total:
            progress.advance(1 if progress.is_terminal else total, success=successes / seen)

    return tell


def borrow_evaluation(this: Run) -> bool:
    """Takes over the evaluation after the warm-up of `sft.from_run`, where it is the same."""
    panels = {split: _panel_size(this, split) for split in this.config.eval.splits}
    entry = borrow.evaluation(this.config, this.workdir, AFTER_WARMUP, this.state.step, panels)
    if entry is None:
        return False
    this.metrics.write(this.state.step, "eval", eval_metrics(entry))
    this.state.evaluated.append(AFTER_WARMUP)
    return True
