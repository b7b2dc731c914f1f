"""Success against what it has cost, one line for each method or setting, as one SVG file."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from spark_jax.run.costs import COSTS, Curve
from spark_jax.run.report_plots import COLOURS, STYLES

Lines = Mapping[str, Sequence[Curve]]  # name -> a curve for each seed

_POINTS = 60  # at which the seeds of a line are averaged


def plot_costs(panels: Mapping[str, Lines], file: pathlib.Path) -> None:
    """One row of axes for each panel (label of the y axis -> lines; values are shares), one column
    for each of COSTS. A line is the mean over seeds, as far as all of them have come; its band goes
    from the lowest seed to the highest."""
    columns = len(COSTS)
    size = (4.2 * columns, 0.5 + 3.1 * len(panels))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(panels), columns, squeeze=False, sharey="row")
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    handles = {}
    for axes, (label, lines) in zip(grid, panels.items(), strict=True):
        for axis, title in zip(axes, COSTS, strict=True):
            for name, curves in lines.items():
                number = names.index(name)
                look = {
                    "color": COLOURS[number % len(COLOURS)],
                    "linestyle": STYLES[number // len(COLOURS) % len(STYLES)],
                }
                averaged = average([curve for curve in curves if curve], title)
                if averaged is None:
                    continue
                x, mean, low, high = averaged
                handles[name] = axis.plot(x, 100 * mean, label=name, linewidth=1.4, **look)[0]
                if len(curves) > 1:
                    axis.fill_between(x, 100 * low, 100 * high, color=look["color"], alpha=0.12)
            axis.set_xlabel(title, fontsize=8)
            axis.tick_params(labelsize=8)
            axis.grid(True, color="#dddddd", linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].set_ylabel(label, fontsize=8)
    shown = [name for name in names if name in handles]
    if shown:
        figure.legend(
            [handles[name] for name in shown], shown, loc="outside lower center", fontsize=8,
            ncols=min(5, len(shown)), frameon=False,
        )  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "costs"}):
        figure.savefig(file, format="svg", metadata={"Date": None})


def average(
    curves: Sequence[Curve], cost: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """(cost, mean, lowest, highest) over the curves, where all of them are known, in between by
    straight lines. None where there is nothing to draw: no curve, or the cost never rises."""
    if not curves:
        return None
    xs = [np.array([at[cost] for at, _ in curve]) for curve in curves]
    first, last = max(x[0] for x in xs), min(x[-1] for x in xs)
    if last <= 0 or last < first:
        return None
    at = np.linspace(first, last, _POINTS)
    values = np.stack(
        [np.interp(at, x, [v for _, v in curve]) for x, curve in zip(xs, curves, strict=True)]
    )
    return at, values.mean(0), values.min(0), values.max(0)
