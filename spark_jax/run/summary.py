"""The closing tables of a run: success side by side, and every other measure, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from spark_jax.run.evalfile import own
from spark_jax.run.statistics import (
    Difference,
    Interval,
    bootstrap,
    paired_difference,
    percent,
    points,
    wilson,
)

# Column, key in eval.json, unit. Ratios are per step of an episode.
MEASURES = (
    ("score > 0, %", "loose_success_rate", 0.01),
    ("score", "score", 1.0),
    ("steps", "steps", 1.0),
    ("tokens", "response_tokens", 1.0),
    ("repeated, %", "repeat_ratio", 0.01),
    ("invalid, %", "invalid_ratio", 0.01),
    ("explore, %", "explore_rate", 0.01),
)


def compare(
    first: Mapping[str, Any], second: Mapping[str, Any], split: str, of: str = "success"
) -> Difference | None:
    """Paired difference of two evaluations (entries of `eval.json`) on the tasks of one split that
    both played, in `of`, a field of their results; None when they share none.

    Raises:
      KeyError: an evaluation lacks the split.
    """
    a, b = (_by_task(entry["splits"][split]["results"], of) for entry in (first, second))
    both = [task for task in a if task in b]
    if not both:
        return None
    return paired_difference([a[t] for t in both], [b[t] for t in both])


def shared_tasks(first: Mapping[str, Any], second: Mapping[str, Any], split: str) -> int:
    """How many tasks of a split two evaluations both played."""
    a, b = (_by_task(entry["splits"][split]["results"]) for entry in (first, second))
    return len(a.keys() & b.keys())


def print_summary(evaluations: Sequence[Mapping[str, Any]], stream: TextIO | None = None) -> None:
    """Prints two tables. Success: one row per split and one column per evaluation (95 % Wilson
    interval); with two or more of the run's own, the paired change from the first to the last of
    them with its p value.
    Everything else: one row per split and evaluation (95 % bootstrap interval)."""
    if not evaluations:
        return
    console = _console(stream)
    console.print(_success_table(evaluations))
    console.print(_measure_table(evaluations))


def print_types(entry: Mapping[str, Any], stream: TextIO | None = None) -> None:
    """Success by task type, the mean over episodes and over types, and pass@k where tasks were
    played several times."""
    console = _console(stream)
    table = Table(title=f"{entry['name']}: success by task type, %", title_justify="left")
    table.add_column("split")
    table.add_column("task type")
    table.add_column("episodes", justify="right")
    table.add_column("success [95 % interval]", justify="right")
    for row in type_rows(entry):
        table.add_row(*row)
    console.print(table)


def _console(stream: TextIO | None) -> Console:
    console = Console(file=stream)
    # A log file has no width; never fold a table there.
    return console if console.is_terminal else Console(file=stream, width=200)


def type_rows(entry: Mapping[str, Any]) -> list[list[str]]:
    """The cells of `print_types`. Intervals are over tasks: episodes of one are not independent."""
    rows = []
    for split, summary in entry["splits"].items():
        by_task = _by_task(summary["results"])
        by_type: dict[str, list[float]] = {}
        for (name, _, _), rate in by_task.items():
            by_type.setdefault(name, []).append(rate)
        for name, rates in sorted(by_type.items()):
            episodes = summary["types"][name]["episodes"]
            interval = bootstrap(rates)
            if episodes == len(rates):
                interval = wilson(int(sum(rates)), episodes)
            rows.append([split, name, str(episodes), percent(interval)])
        micro = Interval(summary["success_rate"], *summary["interval"])
        rows.append([split, "mean over episodes", str(summary["episodes"]), percent(micro)])
        macro = Interval(*summary["macro"])
        rows.append([split, "mean over types", str(len(by_type)), percent(macro)])
        for k, rate in summary["pass_at"].items():
            rows.append([split, f"pass@{k}", str(summary["episodes"]), percent(Interval(*rate))])
    return rows


def _success_table(evaluations: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Success rate, % [95 % interval]", title_justify="left")
    table.add_column("split")
    table.add_column("episodes", justify="right")
    for entry in evaluations:
        table.add_column(f"{entry['name']} (step {entry['step']})", justify="right")
    if len(evaluations) > 1:
        table.add_column("change, points", justify="right")
        table.add_column("p", justify="right")
    for row in summary_rows(evaluations):
        table.add_row(*row)
    return table


def _measure_table(evaluations: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Other measures [95 % interval]", title_justify="left")
    table.add_column("split")
    table.add_column("evaluation")
    for title, _, _ in MEASURES:
        table.add_column(title, justify="right")
    for row in measure_rows(evaluations):
        table.add_row(*row)
    return table


def measure_rows(evaluations: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Split, evaluation and the cells of MEASURES."""
    return [
        [split, entry["name"], *(_measure(entry["splits"][split], m) for m in MEASURES)]
        for split in _splits(evaluations)
        for entry in evaluations
        if split in entry["splits"]
    ]


def summary_rows(evaluations: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The cells of the table, also used by the report."""
    rows = []
    for split in _splits(evaluations):
        have = [entry for entry in evaluations if split in entry["splits"]]
        counts = sorted({entry["splits"][split]["episodes"] for entry in have})
        row = [split, "/".join(map(str, counts))]
        row += [_rate(entry["splits"].get(split)) for entry in evaluations]
        if len(evaluations) > 1:
            course = own(have)
            difference = compare(course[0], course[-1], split) if len(course) > 1 else None
            row += _change(difference)
        rows.append(row)
    return rows


def _splits(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({split for entry in evaluations for split in entry["splits"]})


def _measure(summary: Mapping[str, Any], measure: tuple[str, str, float]) -> str:
    _, name, unit = measure
    if name not in summary["measures"]:
        return "–"
    estimate, low, high = (x / unit for x in summary["measures"][name])
    return f"{estimate:.1f} [{low:.1f}, {high:.1f}]"


def _rate(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return "–"
    return percent(Interval(summary["success_rate"], *summary["interval"]))


def _change(difference: Difference | None) -> list[str]:
    if difference is None:
        return ["–", "–"]
    p = "< 0.001" if difference.p_value < 0.001 else f"{difference.p_value:.3f}"
    return [points(difference), p]


def _by_task(
    results: Sequence[Mapping[str, Any]], of: str = "success"
) -> dict[tuple[Any, ...], float]:
    """Mean of a field over each task's episodes, by (type, variation, seed)."""
    tries: dict[tuple[Any, ...], list[float]] = {}
    for r in results:
        tries.setdefault((r["type"], r["variation"], r["seed"]), []).append(float(r[of]))
    return {task: sum(values) / len(values) for task, values in tries.items()}
