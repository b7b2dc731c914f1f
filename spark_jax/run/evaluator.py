"""Evaluation by itself: any checkpoint or model, whole splits or panels, several samples a task.

Episodes are appended to `evaluations/NAME.jsonl` as they end, so an evaluation that was stopped
goes on where it was. What comes out is an entry of `eval.json` (run/evalfile.py).
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from spark_jax.envs.pool import EnvPool, default_workers
from spark_jax.rollout.dialogue import Dialogue
from spark_jax.run.checkpoint import NEWEST, check_checkpoint, saved_parameters
from spark_jax.run.compilations import keep_on_disk
from spark_jax.run.evalfile import EpisodeResult, add_evaluation
from spark_jax.run.evaluation import play_panel
from spark_jax.run.policy import episode_rule, limits, load_policy, make_engine, voting_rule
from spark_jax.run.progress import Progress
from spark_jax.run.recorded import Recorded, panel_of, played_by
from spark_jax.run.seen import leaked, seen_tasks
from spark_jax.run.worlds import make_world

# Settings that an episode depends on, and a vote besides.
PLAYED_BY = ("seed", "algo.name", "env.", "model.", "rollout.", "tree.fork_at")
VOTED_BY = (*PLAYED_BY, "tree.")


@dataclasses.dataclass(frozen=True)
class Request:
    """What to evaluate."""

    name: str
    splits: tuple[str, ...]
    episodes: int = 0  # of a split; 0: all of it
    samples: int = 1  # episodes of each task
    temperature: float = 0.4
    seed: int = 0
    # newest or reference (parameters after the warm-up) of the work folder's checkpoints, or
    # initial: the model's own weights, nothing trained
    checkpoint: str = NEWEST
    fork: bool = False  # a tree per task by tree.*, and a vote of its leaves; else one episode


def evaluate(config: ConfigDict, workdir: Path, request: Request) -> dict[str, Any]:
    """Plays what `request` asks for and is not played yet; returns the entry of `eval.json`.

    Raises UserError for a split that the environment does not have, a checkpoint that is not
    there, or a model that needs a vocabulary where none was learned.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.eval.splits = request.splits
    keep_on_disk()
    check_checkpoint(workdir, request.checkpoint)
    world = make_world(config)
    if world.source:
        print(world.source, file=sys.stderr, flush=True)
    policy = load_policy(config, workdir, None)
    params, step = saved_parameters(workdir, policy.params, request.checkpoint)
    engine = make_engine(config, policy)
    rule = voting_rule(config) if request.fork else episode_rule(config)
    dialogue = Dialogue(policy.codec, world.system, world.first_message, window=world.window)
    head = {**dataclasses.asdict(request), "splits": list(request.splits), "step": step}
    head["config"] = played_by(config, VOTED_BY if request.fork else PLAYED_BY)
    file = workdir / "evaluations" / f"{request.name}.jsonl"
    workers = config.env.workers or default_workers()
    part = max(32, 2 * config.rollout.rows)  # episodes played, then written, at a time
    results: dict[str, list[EpisodeResult]] = {}
    with EnvPool(world.make_env, workers) as environments:
        for split in request.splits:
            tasks = panel_of(world, split, request.episodes)
            done = Recorded(file, head, split)
            with Progress(
                f"{request.name}, {split}", len(tasks) * request.samples, "episode", len(done)
            ) as progress:
                for sample in range(request.samples):
                    left = [task for task in tasks if (sample, task) not in done]
                    for i in range(0, len(left), part):
                        played = play_panel(
                            left[i : i + part], params, engine, environments, dialogue, rule,
                            limits(config), request.seed, request.temperature,
                            config.rollout.deterministic, None, sample,
                        )  # fmt: skip
                        done.add(sample, played)
                        progress.advance(len(played), success=done.success_rate())
            results[split] = done.results(tasks, request.samples)
    asked = {"samples", "seed", "checkpoint", "fork", "config"}
    seen = seen_tasks(workdir, config, request.checkpoint)
    return add_evaluation(
        workdir, request.name, step, request.temperature, results,
        asked={name: head[name] for name in sorted(asked)},
        leaked={
            split: leaked([r.task for r in played], seen, config)
            for split, played in results.items()
        },
    )  # fmt: skip
