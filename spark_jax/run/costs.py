"""What a run has spent so far and what came of it, read off its work folder: for comparing runs."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from spark_jax.run.config import read_config
from spark_jax.run.evalfile import evaluation, last_evaluation_name, own, read_evaluations
from spark_jax.run.metrics import read_metrics
from spark_jax.types import UserError

# What success is plotted against: title, metrics of a line of metrics.jsonl whose sum it is.
COSTS = {
    "sampled tokens": ("rollout/response_tokens",),
    "environment steps": ("rollout/env_steps", "rollout/replay_steps"),
    "seconds of training": ("time/rollout_s", "time/update_s"),
}

Curve = list[tuple[dict[str, float], float]]  # (costs so far, value), in order


def rows_after_warmup(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of iterations of RL, or of the epochs of SFT that stand in their
    place (`sft.extra_seconds`); none for a run that has not started."""
    if not (workdir / "metrics.jsonl").is_file():
        return []
    out, warm = [], False
    for row in read_metrics(workdir):
        warm = warm or row["phase"] == "eval"
        if row["phase"] == "rl" or (row["phase"] == "sft" and warm):
            out.append(row)
    return out


def spent(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Sum of each of COSTS over lines of metrics.jsonl."""
    rows = list(rows)
    return {
        title: sum(row.get(key, 0) for row in rows for key in keys) for title, keys in COSTS.items()
    }


def curve(workdir: pathlib.Path, metric: str = "rollout/success_rate") -> Curve:
    """A metric after each iteration of RL. Iterations that lack it are left out."""
    rows = rows_after_warmup(workdir)
    return [(spent(rows[: i + 1]), row[metric]) for i, row in enumerate(rows) if metric in row]


def evaluated(workdir: pathlib.Path, split: str) -> Curve:
    """Success rate of a split in every evaluation of the run's own that has it."""
    rows = rows_after_warmup(workdir)
    return [
        (
            spent(row for row in rows if row["step"] <= entry["step"]),
            entry["splits"][split]["success_rate"],
        )
        for entry in own(read_evaluations(workdir))
        if split in entry["splits"]
    ]


def running_mean(points: Curve, over: int) -> Curve:
    """Each value replaced by the mean of the last `over` ones (as many as there are)."""
    values = [value for _, value in points]
    windows = [values[max(0, i + 1 - over) : i + 1] for i in range(len(values))]
    return [(at, sum(w) / len(w)) for (at, _), w in zip(points, windows, strict=True)]


def last_evaluation(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The evaluation at the end of a run; None for one that has not come so far."""
    if not (workdir / "config.json").is_file():
        return None
    return evaluation(workdir, last_evaluation_name(read_config(workdir)))


def outcomes(entry: Mapping[str, Any], split: str) -> list[float]:
    """Success, 0 or 1, of every episode of a split, in the order of the panel."""
    return [float(r["success"]) for r in entry["splits"][split]["results"]]


def same_panel(entries: Sequence[Mapping[str, Any]], split: str) -> None:
    """Raises UserError unless all evaluations played the same tasks of a split in one order."""
    panels = {
        tuple((r["type"], r["variation"], r["seed"]) for r in entry["splits"][split]["results"])
        for entry in entries
    }
    if len(panels) > 1:
        raise UserError(
            f"the runs played different tasks of {split}, so they cannot be paired; give all of "
            "them the same eval.episodes and env.* settings."
        )
