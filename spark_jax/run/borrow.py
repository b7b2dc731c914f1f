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
    prompts that show another part of the path."""
    source = read_config(config.sft.from_run)
    history = source.env.get("history", 0)  # older runs have no such key
    if history != config.env.history:
        raise UserError(
            f"config.sft.from_run={config.sft.from_run} was warmed up with config.env.history="
            f"{history}, not {config.env.history}, so its prompts are other ones; start from a run "
            "with the same config.env.history or from none."
        )
    theirs = source.algo.name
    if (theirs == "rlvmr") != (config.algo.name == "rlvmr"):
        raise UserError(
            f"config.sft.from_run={config.sft.from_run} was warmed up for config.algo.name={theirs}"
            f", whose responses have other tags than those of {config.algo.name}; start from a run "
            "with the same tags or from none."
        )


def dialogues(source: str | Path, workdir: Path) -> list[warmup.Example]:
    """Dialogues of the other run; they and its vocabulary are copied to `workdir`.

    Raises UserError if that run has none.
    """
    source = Path(source)
    if not (source / "warmup.jsonl").is_file():
        raise UserError(
            f"config.sft.from_run={source} has no warmup.jsonl; name the work folder of a run "
            "that has finished its warm-up."
        )
    shutil.copytree(source / "tokenizer", workdir / "tokenizer", dirs_exist_ok=True)
    examples = warmup.load_examples(source / "warmup.jsonl")
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
