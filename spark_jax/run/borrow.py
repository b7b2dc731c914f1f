"""Starting from the warm-up of another run (`sft.from_run`), so that methods are compared from the
same parameters."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from spark_jax.run import evalfile, warmup
from spark_jax.run.checkpoint import Checkpoints
from spark_jax.run.config import read_config
from spark_jax.run.defaults import flatten
from spark_jax.run.worlds import World
from spark_jax.types import UserError

# An evaluation is the same if these are.
_EVALUATED_BY = (
    "seed",
    "env.",
    "model.",
    "rollout.",
    "tree.fork_at",
    "eval.temperature",
    "eval.splits",
    "eval.episodes",
)


def check_format(config: ConfigDict) -> None:
    """Raises UserError if the warm-up of `sft.from_run` taught other tags than this run needs, or
    was in another environment or with other prompts."""
    source = read_config(config.sft.from_run)
    env = config.env
    for key, ours in (("name", env.name), ("prompt", env.prompt), ("history", env.history)):
        theirs = source.env.get(key, 0)  # older runs have no history
        if theirs != ours:
            raise UserError(
                f"config.sft.from_run={config.sft.from_run} was warmed up with config.env.{key}="
                f"{theirs}, not {ours}, so its prompts are other ones; start from a run "
                f"with the same config.env.{key} or from none."
            )
    theirs = source.algo.name
    if (theirs == "rlvmr") != (config.algo.name == "rlvmr"):
        raise UserError(
            f"config.sft.from_run={config.sft.from_run} was warmed up for config.algo.name={theirs}"
            f", whose responses have other tags than those of {config.algo.name}; start from a run "
            "with the same tags or from none."
        )


def dialogues(source: str | Path, workdir: Path, world: World) -> list[warmup.Example]:
    """Dialogues of the other run; they and its vocabulary are copied to `workdir`.

    Raises UserError if that run has none, or one about a task that this run evaluates on or about
    a task type that it holds out.
    """
    source = Path(source)
    if not (source / "warmup.jsonl").is_file():
        raise UserError(
            f"config.sft.from_run={source} has no warmup.jsonl; name the work folder of a run "
            "that has finished its warm-up."
        )
    examples = warmup.load_examples(source / "warmup.jsonl")
    evaluated = {task for tasks in world.splits.values() for task in tasks}
    held_out = {task.type for task in world.splits.get("L2", ())} - set(world.train)
    for task in (example.task for example in examples):
        if task in evaluated or task.type in held_out:
            raise UserError(
                f"config.sft.from_run={source} was warmed up on {task.type} variation "
                f"{task.variation}, which this run holds out for its evaluation; start from a run "
                "with the same config.env.tasks and config.env.protocol."
            )
    shutil.copytree(source / "tokenizer", workdir / "tokenizer", dirs_exist_ok=True)
    warmup.save_examples(workdir / "warmup.jsonl", examples)
    return examples


def reference(source: str | Path, params: Any) -> Any:
    """Parameters at the end of the other run's warm-up, placed as `params` are."""
    with Checkpoints(source, read_only=True) as checkpoints:
        return checkpoints.restore_reference(params)


def evaluation(
    config: ConfigDict, workdir: Path, name: str, step: int, episodes: Mapping[str, int]
) -> dict[str, Any] | None:
    """The same parameters on the same panels give the same episodes: copies the evaluation `name`
    of `sft.from_run` to `workdir`, and returns it, if that run evaluates as this one does.

    `episodes`: of the panel of each split.
    """
    source = config.sft.from_run
    if not source:
        return None
    theirs, ours = flatten(read_config(source)), flatten(config)
    if any(theirs.get(key) != ours[key] for key in ours if key.startswith(_EVALUATED_BY)):
        return None
    found = evalfile.evaluation(source, name)
    if found is None or found["temperature"] != config.eval.temperature:
        return None  # it is older than those settings of that run
    if {split: entry["episodes"] for split, entry in found["splits"].items()} != dict(episodes):
        return None
    return evalfile.copy_evaluation(source, workdir, name, step)
