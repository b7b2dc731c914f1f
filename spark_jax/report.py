"""One page with the curves, evaluations and trees of a run.

python -m spark_jax.report runs/tiny

Writes `report.html` into the work folder; it needs no network and no files beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spark_jax.run.command_line import Parser, exit_code
from spark_jax.run.config import changed_keys, read_config
from spark_jax.run.defaults import flatten
from spark_jax.run.evalfile import read_evaluations
from spark_jax.run.files import write_text
from spark_jax.run.metrics import read_metrics
from spark_jax.run.report_page import page
from spark_jax.run.report_plots import charts, success_chart
from spark_jax.run.treefile import read_trees, tree_iterations, tree_path
from spark_jax.run.worlds import tree_views
from spark_jax.types import UserError

DEFAULT_ITERATIONS = 5  # shown unless --iterations says otherwise, spread over the run


def write_report(workdir: Path | str, iterations: Sequence[int] | None = None) -> Path:
    """Writes `report.html` of a finished or running run, or of a folder that holds nothing but
    evaluations (of an endpoint, of a model that was not trained here).

    Args:
      workdir: the work folder.
      iterations: whose trees are shown; None: first, last and a few between.

    Returns:
      the page's path.

    Raises:
      UserError: the folder is no run's, a file in it is damaged, or an iteration has no trees.
    """
    workdir = Path(workdir)
    evaluations = read_evaluations(workdir)
    trained = not evaluations or (workdir / "config.json").exists()
    config = read_config(workdir) if trained else None
    have = tree_iterations(workdir)
    chosen = _spread(have) if iterations is None else list(iterations)
    for iteration in chosen:
        if iteration not in have:
            known = f"{have[0]} to {have[-1]}" if have else "none"
            raise UserError(
                f"iteration {iteration} of {workdir} has no tree file; there are {known}."
            )
    rows = read_metrics(workdir) if (workdir / "metrics.jsonl").exists() else []
    figures = charts(rows)
    evaluated = success_chart(evaluations)
    if evaluated is not None:
        figures.insert(0, ("Success in evaluations, with 95 % intervals", evaluated))
    views = tree_views(config) if config else None
    text = page(
        title=workdir.resolve().name,
        config=flatten(config) if config else {},
        changed=changed_keys(config) if config else {},
        rows=rows,
        evaluations=evaluations,
        figures=figures,
        trees={i: _viewed(read_trees(tree_path(workdir, i)), views) for i in chosen},
        all_iterations=have,
    )
    path = workdir / "report.html"
    write_text(path, text)
    return path


def _viewed(trees: list[dict[str, Any]], views) -> list[dict[str, Any]]:
    """The trees with a "view" at each node that has one."""
    for tree in trees if views else ():
        for number, parts in views(tree).items():
            tree["nodes"][number]["view"] = parts
    return trees


def _spread(have: Sequence[int]) -> list[int]:
    """The first, the last, and evenly spread ones between."""
    count = min(DEFAULT_ITERATIONS, len(have))
    if count < 2:
        return list(have)
    return [have[round(i * (len(have) - 1) / (count - 1))] for i in range(count)]


def _parse_iterations(text: str, workdir: str) -> list[int] | None:
    if text == "all":
        return tree_iterations(workdir)
    if not text:
        return None
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UserError(
            f"--iterations is {text!r}; it has to be numbers such as 0,5,10, or all."
        ) from None


def main(argv: Sequence[str]) -> None:
    parser = Parser(prog="python -m spark_jax.report", description=__doc__.splitlines()[0])
    parser.add_argument("workdir", help="work folder of a run")
    parser.add_argument(
        "--iterations", default="", help="whose trees to show: 0,5,10 or all (default: a few)"
    )
    options = parser.parse_args(argv)
    print(write_report(options.workdir, _parse_iterations(options.iterations, options.workdir)))


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
