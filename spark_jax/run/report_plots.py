"""The report's curves, as SVG texts that can stand inside an HTML page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure


class Chart(NamedTuple):
    """One chart: a title, the phase it belongs to, and (metric, label) of its lines."""

    title: str
    phase: str  # "sft" or "rl"
    lines: tuple[tuple[str, str], ...]
    unit: str = ""
    log: bool = False


CHARTS = (
    Chart("Success of rollouts", "rl", (("rollout/success_rate", "rollouts"),), "share of leaves"),
    Chart(
        "What steps are like",
        "rl",
        (
            ("rollout/explore_rate", "<explore>"),
            ("rollout/repeat_ratio", "repeated"),
            ("rollout/invalid_ratio", "invalid"),
        ),
        "share of steps",
    ),
    Chart(
        "Tokens of rollouts",
        "rl",
        (
            ("rollout/linear_tokens", "separate episodes would take"),
            ("rollout/prefill_tokens", "prefilled"),
            ("rollout/response_tokens", "sampled"),
        ),
        "tokens an iteration",
    ),
    Chart(
        "Tokens of updates",
        "rl",
        (
            ("train/linear_tokens", "separate episodes would take"),
            ("train/packed_tokens", "packed trees"),
        ),
        "tokens an iteration",
    ),
    Chart("KL to the reference", "rl", (("train/kl", "KL"),), "nats a token"),
    Chart("Loss", "rl", (("train/loss", "loss"), ("train/policy_loss", "policy loss"))),
    Chart("Entropy", "rl", (("train/entropy", "entropy"),), "nats a token"),
    Chart(
        "Clipped tokens",
        "rl",
        (("train/clip_fraction", "clipped"),),
        "share of tokens",
    ),
    Chart("Gradient norm", "rl", (("train/grad_norm", "gradient norm"),), log=True),
    Chart(
        "Time",
        "rl",
        (
            ("time/rollout_s", "rollout"),
            ("time/env_s", "environments, all workers"),
            ("time/update_s", "update"),
        ),
        "seconds an iteration",
    ),
    Chart("Warm-up loss", "sft", (("train/loss", "loss"),), "nats a token"),
    Chart(
        "Warm-up, success on the L0 panel",
        "sft",
        (("sft/panel_success_rate", "L0 panel"),),
        "share of episodes",
    ),
)
COLOURS = (
    "#2563a8",
    "#c2540a",
    "#3d7a3d",
    "#7b4fa3",
)  # told apart in grey and by colour-blind eyes
STYLES = ("-", "--", "-.", ":")


def charts(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(title, SVG) of every chart that the lines of metrics.jsonl have data for."""
    out = []
    for chart in CHARTS:
        lines = []
        for name, label in chart.lines:
            points = [(r["step"], r[name]) for r in rows if r["phase"] == chart.phase and name in r]
            if points:
                lines.append((label, points))
        if lines:
            out.append((chart.title, _draw(chart, lines)))
    return out


def success_chart(evaluations: Sequence[Mapping[str, Any]]) -> str | None:
    """Evaluations over steps: one line per split with its 95 % interval; None without any."""
    if not evaluations:
        return None
    figure, axes = _axes("evaluated success", "share of episodes")
    splits = sorted({split for entry in evaluations for split in entry["splits"]})
    width = max(e["step"] for e in evaluations) - min(e["step"] for e in evaluations) or 1
    for i, split in enumerate(splits):
        entries = [(e["step"], e["splits"][split]) for e in evaluations if split in e["splits"]]
        # Intervals of several splits at one step would cover each other: shift them a little.
        steps = [step + (i - (len(splits) - 1) / 2) * 0.012 * width for step, _ in entries]
        rates = [summary["success_rate"] for _, summary in entries]
        low = [summary["success_rate"] - summary["interval"][0] for _, summary in entries]
        high = [summary["interval"][1] - summary["success_rate"] for _, summary in entries]
        axes.errorbar(
            steps, rates, yerr=[low, high], label=split, color=COLOURS[i % 4],
            linestyle=STYLES[i % 4], marker="os^D"[i % 4], markersize=4, capsize=3, linewidth=1.2,
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure, "evaluated success")


def _draw(chart: Chart, lines: Sequence[tuple[str, Sequence[tuple[int, float]]]]) -> str:
    figure, axes = _axes(chart.title, chart.unit)
    for i, (label, points) in enumerate(lines):
        steps, values = zip(*points, strict=True)
        marker = "o" if len(points) < 40 else None
        axes.plot(
            steps, values, label=label, color=COLOURS[i], linestyle=STYLES[i], linewidth=1.4,
            marker=marker, markersize=2.5,
        )  # fmt: skip
    values = [value for _, points in lines for _, value in points]
    if chart.log and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
    elif min(values) >= 0:
        axes.set_ylim(bottom=0)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8)
    return _svg(figure, chart.title)


def _axes(title: str, unit: str) -> tuple[Figure, Any]:
    # Figure itself, not pyplot: no global state, no display needed.
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("step", fontsize=8)
    axes.set_ylabel(unit, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element. Text stays text (searchable, small). `name` seeds the ids
    inside, which have to differ between the charts of one page and be the same in every report."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Title": name})
    text = re.sub(r'<g id="[^"]*"', "<g", out.getvalue())  # the same in every chart, and unused
    return text[text.index("<svg") :]
