"""An ablation sweep: every combination of some settings, several seeds, one table and one plot.

    python launch/sweep.py configs/sweeps/branch.py --runs=runs/branch --seeds=0,1,2
    python launch/sweep.py --grid tree.leaves=4,8,16 --runs=runs/leaves --config.rl.iterations=4

A sweep file holds GRID: a dictionary from config keys to lists of values, of which all combinations
run, or a list of dictionaries from config keys to a value, one for each setting. Every run is a
process of its own with its own work folder; a second call passes over what is finished and goes on
where the first one stopped. --print lists the commands instead, for a job queue; --table only
collects what is there. All settings play the same number of iterations, whatever they cost: the
table and the plot say what.
"""

from __future__ import annotations

import itertools
import pathlib
import runpy
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from spark_jax.run.command_line import Parser, exit_code, read_seeds, take_overrides  # noqa: E402
from spark_jax.run.config import load_config, read_config  # noqa: E402
from spark_jax.run.cost_plot import plot_costs  # noqa: E402
from spark_jax.run.costs import (  # noqa: E402
    COSTS,
    curve,
    last_evaluation,
    outcomes,
    rows_after_warmup,
    same_panel,
    spent,
)
from spark_jax.run.defaults import flatten  # noqa: E402
from spark_jax.run.evalfile import asked_for  # noqa: E402
from spark_jax.run.files import write_text  # noqa: E402
from spark_jax.run.statistics import bootstrap, percent  # noqa: E402
from spark_jax.types import UserError  # noqa: E402


class Cell(NamedTuple):
    """One combination of settings: what its runs are called and what they override."""

    name: str
    overrides: tuple[str, ...]


class Job(NamedTuple):
    """One run."""

    cell: Cell
    seed: int
    workdir: pathlib.Path
    config: ConfigDict
    command: list[str]


Grid = Mapping[str, Sequence[object]] | Sequence[Mapping[str, object]]


def cells(grid: Grid) -> list[Cell]:
    """The settings, in the order of the grid."""
    if isinstance(grid, Mapping):
        grid = [
            dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
        ]
    out: list[Cell] = []
    keys = {key for setting in grid for key in setting}
    last = [key.split(".")[-1] for key in keys]
    short = {key: key if last.count(key.split(".")[-1]) > 1 else key.split(".")[-1] for key in keys}
    for setting in grid:
        name = ",".join(f"{short[key]}={value}" for key, value in setting.items())
        overrides = tuple(f"{key}={value}" for key, value in setting.items())
        cell = Cell(name.replace("/", "_") or "base", overrides)
        if cell.name in (other.name for other in out):
            raise UserError(f"the sweep has {cell.name} twice; name every setting once.")
        out.append(cell)
    return out


def jobs(
    runs: str, config: str, grid: Grid, seeds: Sequence[int], extra: Sequence[str]
) -> list[Job]:
    """Every run, in order; all settings are checked.

    Raises:
      UserError: a setting is wrong, or `extra` overrides what the sweep varies.
    """
    out = []
    for cell in cells(grid):
        varied = {"seed"} | {override.split("=")[0] for override in cell.overrides}
        for override in extra:
            if override.split("=")[0] in varied:
                raise UserError(
                    f"--config.{override} would be the same in all runs, but the sweep varies "
                    f"{override.split('=')[0]}; leave one of the two out (--seeds names the seeds)."
                )
        for seed in seeds:
            workdir = pathlib.Path(runs) / cell.name / f"seed{seed}"
            overrides = [f"seed={seed}", *cell.overrides, *extra]
            command = [sys.executable, "-m", "spark_jax.main", f"--config={config}"]
            command += [f"--workdir={workdir}", *(f"--config.{o}" for o in overrides)]
            out.append(Job(cell, seed, workdir, load_config(config, overrides), command))
    return out


def is_finished(job: Job) -> bool:
    """The run has come to its end, with the settings that it would have now."""
    end = last_evaluation(job.workdir)
    if end is None or flatten(read_config(job.workdir)) != flatten(job.config):
        return False
    return asked_for(end, job.config)


def table(folders: Mapping[str, Sequence[pathlib.Path]]) -> str:
    """Markdown: one row per cell, success in % with the interval over seeds and episodes."""
    ends = {
        name: [(folder, end) for folder in group if (end := last_evaluation(folder))]
        for name, group in folders.items()
    }
    splits = sorted({split for runs in ends.values() for _, end in runs for split in end["splits"]})
    lines = ["| " + " | ".join(["setting", "seeds", *splits, *COSTS]) + " |"]
    lines.append("|---" * (2 + len(splits) + len(COSTS)) + "|")
    for name, runs in ends.items():
        row = [name, f"{len(runs)} of {len(folders[name])}"]
        for split in splits:
            same_panel([end for _, end in runs if split in end["splits"]], split)
            groups = [outcomes(end, split) for _, end in runs if split in end["splits"]]
            row.append(percent(bootstrap(groups)) if groups else "")
        costs = [spent(rows_after_warmup(folder)) for folder, _ in runs]
        row += [
            f"{sum(c[title] for c in costs) / len(costs):.0f}" if costs else "" for title in COSTS
        ]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def plot(folders: Mapping[str, Sequence[pathlib.Path]], file: pathlib.Path) -> None:
    """Success of the rollouts against each cost, one line per cell."""
    metric = "rollout/path_success_rate"
    lines = {name: [curve(folder, metric) for folder in group] for name, group in folders.items()}
    plot_costs({"success on train tasks, %": lines}, file)


def read_grid(file: str, texts: Sequence[str]) -> Grid:
    """GRID of a sweep file, or `KEY=VALUE,VALUE` of --grid, or both if GRID is a dictionary.

    Raises:
      UserError: for mistakes.
    """
    grid: Grid = {}
    if file:
        if not pathlib.Path(file).is_file():
            raise UserError(f"there is no sweep file {file}; configs/sweeps has some.")
        try:
            grid = runpy.run_path(file).get("GRID")
        except Exception as error:  # whatever is wrong with that file
            raise UserError(f"{file} cannot be read ({type(error).__name__}: {error}).") from None
        if not _is_grid(grid):
            raise UserError(
                f"{file} has no GRID, a dictionary from config keys to value lists or a list of "
                "dictionaries from config keys to a value."
            )
    for text in texts:
        key, _, values = text.partition("=")
        if not key or not values:
            raise UserError(f"--grid {text} has to be KEY=VALUE,VALUE, e.g. tree.leaves=4,8,16.")
        if not isinstance(grid, Mapping):
            raise UserError(f"--grid {text} cannot be combined with {file}, whose GRID is a list.")
        grid = {**grid, key: values.split(",")}
    return grid


def _is_grid(grid: object) -> bool:
    if isinstance(grid, dict):
        return bool(grid) and all(isinstance(values, list | tuple) for values in grid.values())
    return isinstance(grid, list) and bool(grid) and all(isinstance(c, dict) and c for c in grid)


def main(argv: Sequence[str]) -> int:
    parser = Parser(prog="launch/sweep.py", description=__doc__.splitlines()[0])
    parser.add_argument("sweep", nargs="?", default="", help="file with GRID")
    parser.add_argument("--grid", action="append", default=[], help="KEY=VALUE,VALUE,…; repeatable")
    parser.add_argument("--config", default="configs/scienceworld.py")
    parser.add_argument("--runs", default="", help="folder of the runs' work folders")
    parser.add_argument("--seeds", default="0", help="numbers, comma separated")
    parser.add_argument("--print", action="store_true", dest="list", help="commands, nothing runs")
    parser.add_argument("--table", action="store_true", help="collect what is there, nothing runs")
    rest, overrides = take_overrides(argv)
    for override in overrides:
        if "=" not in override:
            raise UserError(f"config.{override} has no value; write --config.{override}=VALUE.")
    options = parser.parse_args(rest)
    if not options.runs:
        raise UserError("--runs names the folder for the runs; it is missing.")
    seeds = read_seeds(options.seeds)
    grid = read_grid(options.sweep, options.grid)
    todo = jobs(options.runs, options.config, grid, seeds, overrides)
    if options.list:
        for job in todo:
            print(shlex.join(job.command))
        return 0
    folders: dict[str, list[pathlib.Path]] = {}
    failed = 0
    for i, job in enumerate(todo, 1):
        folders.setdefault(job.cell.name, []).append(job.workdir)
        if options.table:
            continue
        finished = is_finished(job)
        state = ": finished" if finished else ""
        print(f"[{i} of {len(todo)}] {job.cell.name}, seed {job.seed}{state}", flush=True)
        if not finished:
            failed += subprocess.run(job.command).returncode != 0
    runs = pathlib.Path(options.runs)
    text = table(folders)
    write_text(runs / "sweep.md", text + "\n")
    plot(folders, runs / "sweep.svg")
    print(f"\n{text}\n\n{runs / 'sweep.md'}, {runs / 'sweep.svg'}")
    if failed:
        print(f"{failed} of {len(todo)} runs failed; the same command goes on.", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
