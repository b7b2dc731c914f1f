"""`eval.json`: the results of every evaluation of a run, episode by episode.

{"evaluations": [
  {"name": "after warm-up", "step": 0, "temperature": 0.4, "splits": {
    "L0": {"episodes": 64, "successes": 20, "success_rate": 0.31, "interval": [0.21, 0.43],
           "measures": {"score": [45.2, 38.0, 52.1], ...}, "macro": [0.29, 0.20, 0.38],
           "pass_at": {"2": [0.41, 0.30, 0.52]},
           "types": {"find-plant": {"episodes": 4, "successes": 2}, ...},
           "results": [{"type": "find-plant", "variation": 3, "seed": 0, "success": 1,
                        "score": 100.0, "steps": 9}, ...]}}}]}

Three numbers are an estimate and its 95 % interval. An evaluation by `spark_jax.evaluate`
(and that of react) also has "asked" (what for) and "leaked" (of each split, episodes whose task is
in the training data; null where that is not known).
"""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from spark_jax.rollout.measure import measure_path
from spark_jax.rollout.vote import majority_leaf
from spark_jax.run.files import write_text
from spark_jax.run.statistics import Interval, bootstrap, macro_average, pass_at_k, wilson
from spark_jax.types import Task, Tree, UserError

PROMPTED, AFTER_WARMUP = "prompted", "after warm-up"  # names of a run's evaluations
AFTER_RL, AFTER_MORE = "after RL", "after more SFT"
_OWN = re.compile("|".join([PROMPTED, AFTER_WARMUP, AFTER_RL, AFTER_MORE, r"iteration \d+"]))


def last_evaluation_name(config: ConfigDict) -> str:
    """Name of the evaluation that a run with these settings ends with."""
    if config.algo.name == "react":
        return PROMPTED
    if config.algo.name == "sft":
        return AFTER_MORE if config.sft.extra_seconds else AFTER_WARMUP
    return AFTER_RL if config.rl.iterations else AFTER_WARMUP


def settings(config: ConfigDict, name: str) -> dict[str, Any]:
    """What decides which episodes the run's evaluation `name` has, of the keys that may change
    when a run is resumed."""
    eval_ = config.eval
    out = {"temperature": eval_.temperature, "splits": [*eval_.splits], "episodes": eval_.episodes}
    if name != AFTER_WARMUP:
        out |= {key: config.rl[key] for key in ("iterations", "sampled_tokens")}
    return out


def asked_for(entry: Mapping[str, Any], config: ConfigDict) -> bool:
    """Whether a run with these settings would have made this evaluation of its own. (Older entries
    do not say how they were made, and count.)"""
    now = settings(config, entry["name"])
    return entry.get("settings", now) == now


class EpisodeResult(NamedTuple):
    """How one evaluation episode ended."""

    task: Task
    success: bool  # by env.success
    score: float  # of the environment, 0..100
    steps: int  # environment turns
    loose: bool = False  # the environment ended the episode with a score above 0
    repeated: int = 0  # steps whose action and observation happened before in the episode
    invalid: int = 0  # steps that the environment did not understand
    explored: int = 0  # steps with a complete <explore> block
    response_tokens: int = 0  # sampled, in all paths where there was a vote
    prompt_tokens: int = 0  # an endpoint's count of what it read, over all requests; else 0


def episode_result(tree: Tree) -> EpisodeResult:
    """How the episode ended that `tree` stands for: its leaf, or the one that its leaves vote for
    (rollout/vote.py), which costs the tokens of the whole tree."""
    m = measure_path(tree, majority_leaf(tree))
    return EpisodeResult(
        task=tree.task,
        success=m.success,
        loose=m.loose,
        score=m.score,
        steps=m.steps,
        repeated=m.repeated,
        invalid=m.invalid,
        explored=m.explored,
        response_tokens=sum(len(node.response_ids) for node in tree.nodes),
    )


def split_summary(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """The entry of one split: counts, rate, 95 % interval, counts per type, episodes.

    The interval is Wilson's; where tasks were played several times, a bootstrap over tasks, since
    episodes of one task are not independent. `macro` is the mean over task types.

    Raises:
      ValueError: no episodes.
    """
    successes = sum(r.success for r in results)
    interval = wilson(successes, len(results))
    tries = _tries(results, [float(r.success) for r in results])
    if len(tries) < len(results):
        interval = bootstrap([*map(_mean, tries.values())], draws=2000)
    by_type: dict[str, list[float]] = {}
    for task, values in tries.items():
        by_type.setdefault(task.type, []).append(_mean(values))
    types: dict[str, dict[str, int]] = {}
    for result in results:
        entry = types.setdefault(result.task.type, {"episodes": 0, "successes": 0})
        entry["episodes"] += 1
        entry["successes"] += int(result.success)
    return {
        "episodes": len(results),
        "successes": successes,
        "success_rate": interval.estimate,
        "interval": [interval.low, interval.high],
        "macro": list(macro_average([*by_type.values()], draws=2000)),
        "pass_at": {str(k): list(rate) for k, rate in _passes([*tries.values()]).items()},
        "measures": _measures(results),
        "types": dict(sorted(types.items())),
        "results": [
            {
                "type": r.task.type,
                "variation": r.task.variation,
                "seed": r.task.seed,
                "success": int(r.success),
                "score": float(r.score),
                "steps": r.steps,
                "loose": int(r.loose),
                "repeated": r.repeated,
                "invalid": r.invalid,
                "explored": r.explored,
                "response_tokens": r.response_tokens,
            }
            for r in results
        ],
    }


def _measures(results: Sequence[EpisodeResult]) -> dict[str, list[float]]:
    """[estimate, low, high] of what is reported beside success: means over episodes, ratios per
    step of an episode; 95 % bootstrap over tasks."""
    columns = {
        "loose_success_rate": [float(r.loose) for r in results],
        "score": [r.score for r in results],
        "steps": [float(r.steps) for r in results],
        "repeat_ratio": [r.repeated / max(1, r.steps) for r in results],
        "invalid_ratio": [r.invalid / max(1, r.steps) for r in results],
        "explore_rate": [r.explored / max(1, r.steps) for r in results],
        "response_tokens": [float(r.response_tokens) for r in results],
    }
    return {
        name: list(bootstrap([*map(_mean, _tries(results, values).values())], draws=2000))
        for name, values in columns.items()
    }


def _passes(tries: Sequence[Sequence[float]]) -> dict[int, Interval]:
    """pass@k for k = 2, 4, … and all samples of a task, with a bootstrap over tasks; empty where
    each was played once. `tries`: the successes of each task's episodes."""
    n = min(map(len, tries))
    ks = sorted({2**i for i in range(1, n.bit_length()) if 2**i <= n} | ({n} if n > 1 else set()))
    return {
        k: bootstrap([pass_at_k(len(t), int(sum(t)), k) for t in tries], draws=2000) for k in ks
    }


def _tries(results: Sequence[EpisodeResult], values: Sequence[float]) -> dict[Task, list[float]]:
    """The values of the episodes of each task."""
    tasks: dict[Task, list[float]] = {}
    for result, value in zip(results, values, strict=True):
        tasks.setdefault(result.task, []).append(value)
    return tasks


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def eval_metrics(entry: Mapping[str, Any]) -> dict[str, float]:
    """The `eval/*` numbers of one evaluation for metrics.jsonl."""
    out = {}
    for split, summary in entry["splits"].items():
        out[f"eval/{split}/success_rate"] = summary["success_rate"]
        for name, (estimate, _, _) in summary["measures"].items():
            out[f"eval/{split}/{name}"] = estimate
    return out


def add_evaluation(
    workdir: pathlib.Path | str,
    name: str,
    step: int,
    temperature: float,
    splits: Mapping[str, Sequence[EpisodeResult]],
    **about: Any,
) -> dict[str, Any]:
    """Adds an evaluation to `eval.json`, or replaces the one with the same name (a resumed run
    evaluates again what it had not recorded in a checkpoint).

    `about`: more fields of the entry. `asked`: what an evaluation was asked for;
    `leaked`; `endpoint`: what a model behind one is and has cost (run/prompted.py).

    Returns:
      the entry that was written.
    """
    entry = {
        "name": name,
        "step": step,
        "temperature": temperature,
        **about,
        "splits": {split: split_summary(results) for split, results in splits.items()},
    }
    _add(workdir, entry)
    return entry


def copy_evaluation(
    source: pathlib.Path | str, workdir: pathlib.Path | str, name: str, step: int
) -> dict[str, Any] | None:
    """Takes over the evaluation `name` of another run, at `step` of this one.

    Returns:
      the entry that was written, None if the other run has none of that name.
    """
    found = evaluation(source, name)
    if found is None:
        return None
    entry = found | {"step": step}
    _add(workdir, entry)
    return entry


def read_evaluations(workdir: pathlib.Path | str) -> list[dict[str, Any]]:
    """The evaluations of a run in order of their steps; none if there is no file yet.

    Raises:
      UserError: the file is damaged.
    """
    path = pathlib.Path(workdir) / "eval.json"
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["evaluations"])
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); remove it, and spark_jax.evaluate writes it again."
        ) from None


def own(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The evaluations that the run itself made, in one way: what can be set side by side as its
    course. Others were asked for later, with other samples, temperatures, votes or models."""
    return [entry for entry in entries if is_own(entry["name"])]


def is_own(name: str) -> bool:
    """Whether an evaluation of that name is the run's own; others may not be called so."""
    return _OWN.fullmatch(name) is not None


def evaluation(workdir: pathlib.Path | str, name: str) -> dict[str, Any] | None:
    """The evaluation of that name; None if there is none so far."""
    return next((e for e in read_evaluations(workdir) if e["name"] == name), None)


def _add(workdir: pathlib.Path | str, entry: dict[str, Any]) -> None:
    """Under a lock: a training and an evaluation beside it may end one at the same time."""
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    folder = os.open(workdir, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        others = [e for e in read_evaluations(workdir) if e["name"] != entry["name"]]
        entries = sorted([*others, entry], key=lambda e: e["step"])
        text = json.dumps({"evaluations": entries}, indent=1) + "\n"
        write_text(workdir / "eval.json", text)
    finally:
        os.close(folder)
