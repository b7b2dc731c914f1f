"""Evaluates a run, or a model that was not trained here, and compares evaluations.

python -m spark_jax.evaluate runs/tiny --splits=L0,L1 --samples=4
python -m spark_jax.evaluate runs/tiny --splits=L1 --fork
python -m spark_jax.evaluate runs/base --config=configs/scienceworld.py:smollm2 --checkpoint=initial
python -m spark_jax.evaluate runs/gpt --config=configs/scienceworld.py \\
  --endpoint=https://api.openai.com/v1 --model=gpt-4o --key_env=OPENAI_API_KEY
python -m spark_jax.evaluate --compare runs/spark runs/grpo

A work folder brings its own config; with --config the folder may be a new one (then only the
checkpoint "initial" makes sense: the model's own weights, prompted). With --endpoint a model that
is not ours plays, by the whole dialogue in messages (docs/endpoints.md). Results go to eval.json of
the work folder; an evaluation that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from spark_jax.run.command_line import Parser, exit_code, parse
from spark_jax.run.config import read_config
from spark_jax.run.endpoint_options import (
    add_endpoint_options,
    connected,
    describe_cost,
    prices_of,
)
from spark_jax.run.evalfile import evaluation, read_evaluations
from spark_jax.run.prompted import Prompted, evaluate_prompted
from spark_jax.run.rules import SPLITS
from spark_jax.run.statistics import points
from spark_jax.run.summary import compare, print_summary, print_types
from spark_jax.types import UserError


def main(argv: Sequence[str]) -> None:
    parser = Parser(prog="python -m spark_jax.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("workdir", nargs="?", default="", help="work folder")
    parser.add_argument("--name", default="", help="of the evaluation; default: what is asked for")
    parser.add_argument("--splits", default="", help="L0,L1,L2; default: those of the config")
    parser.add_argument("--episodes", type=int, default=0, help="tasks of a split; 0: all of it")
    parser.add_argument("--samples", type=int, default=1, help="episodes of each task, for pass@k")
    parser.add_argument("--temperature", type=float, default=None, help="0: greedy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--checkpoint",
        default="newest",
        help="newest, a step, reference (after the warm-up), initial",
    )
    parser.add_argument(
        "--fork",
        action="store_true",
        help="grow a tree per task by the tree.* of the config, and let its leaves vote",
    )
    parser.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="work folders: paired differences, B - A"
    )
    parser.add_argument(
        "--evaluations",
        default="",
        help="with --compare: A's and B's names; default: the last that both have",
    )
    add_endpoint_options(parser)
    options, config = parse(parser, argv)
    if options.compare:
        print_comparison(*options.compare, options.evaluations)
        return
    if options.samples < 1 or options.episodes < 0:
        raise UserError("--samples has to be 1 or more and --episodes 0 or more.")
    if options.endpoint or options.model:
        evaluate_endpoint(options, config)
        return
    if not options.workdir:
        raise UserError("name a work folder, or two after --compare.")
    workdir = Path(options.workdir)
    config = config or read_config(workdir)
    from spark_jax.run.evaluator import Request, evaluate, leaked, seen_tasks  # JAX from here on

    temperature = _temperature(options, config)
    name = _name(options, options.checkpoint, temperature)
    splits = _splits(options.splits, config)
    request = Request(
        name, splits, options.episodes, options.samples, temperature, options.seed,
        options.checkpoint, options.fork,
    )  # fmt: skip
    entry = evaluate(config, workdir, request)
    print_summary([entry])
    print_types(entry)
    seen = seen_tasks(workdir)
    for split, summary in entry["splits"].items():
        count = leaked(summary["results"], seen)
        print(
            f"{split}: {count} of {summary['episodes']} episodes play a task of the training data"
        )


def evaluate_endpoint(options: argparse.Namespace, config: ConfigDict | None) -> None:
    """The same for a model behind an endpoint."""
    if config is None:
        if not options.workdir:
            raise UserError("--endpoint needs --config=configs/scienceworld.py, or a work folder.")
        config = read_config(options.workdir)
    if options.checkpoint != "newest" or options.seed:
        raise UserError(
            "--checkpoint and --seed are for models of ours; leave them out with --endpoint."
        )
    stop, prices = threading.Event(), prices_of(options)
    temperature = _temperature(options, config)
    complete, about = connected(options, temperature, stop)
    plain = options.model.replace("/", "-")
    name = _name(options, plain, temperature)
    workdir = Path(options.workdir or f"runs/{config.env.name}-{plain}")
    splits = _splits(options.splits, config)
    entry = evaluate_prompted(
        config, workdir, Prompted(name, splits, options.episodes, options.samples), complete, about,
        prices, options.concurrency, stop,
    )  # fmt: skip
    print_summary([entry])
    print_types(entry)
    print(f"{workdir}: {describe_cost(entry['endpoint'], prices)}")


def _temperature(options: argparse.Namespace, config: ConfigDict) -> float:
    return config.eval.temperature if options.temperature is None else options.temperature


def _name(options: argparse.Namespace, who: str, temperature: float) -> str:
    """--name, or a name that says what was asked for, so that nothing else replaces it."""
    name = options.name
    if "/" in name or name.startswith("."):
        raise UserError(f"--name={name} would be a path; choose a name without / and leading dot.")
    asked = [who, f"x{options.samples}", f"T{temperature:g}"]
    if options.splits:
        asked.append(options.splits)
    if options.episodes:
        asked.append(f"{options.episodes} tasks")
    if options.seed:
        asked.append(f"seed {options.seed}")
    if options.fork:
        asked.append("fork")
    return name or " ".join(asked)


def _splits(names: str, config: ConfigDict) -> tuple[str, ...]:
    splits = tuple(names.split(",")) if names else tuple(config.eval.splits)
    for split in splits:
        if split not in SPLITS:
            raise UserError(f"--splits names {split!r}; choose from {','.join(SPLITS)}.")
    return splits


def print_comparison(first: str, second: str, names: str) -> None:
    """Paired differences of two runs on the tasks that both played."""
    wanted = names.split(",") if names else _last_of_both(first, second)
    if len(wanted) != 2:
        raise UserError("--evaluations takes two names, A's and B's, with a comma between.")
    a, b = (_entry(folder, name) for folder, name in zip((first, second), wanted, strict=True))
    shared = sorted(set(a["splits"]) & set(b["splits"]))
    if not shared:
        raise UserError(f"{first} and {second} have no split in common: evaluate both on one.")
    print(f"B = {second}, {_describe(b)}\nA = {first}, {_describe(a)}\nB - A, success in points:")
    for split in shared:
        d = compare(a, b, split)
        if d is None:
            print(f"{split}: no task in common")
            continue
        p = "p < 0.001" if d.p_value < 0.001 else f"p = {d.p_value:.3f}"
        print(f"{split}: {points(d)}, {p}")


def _last_of_both(first: str, second: str) -> list[str]:
    """The latest evaluation of the first folder whose name the second one has too, twice."""
    names = [e["name"] for e in read_evaluations(second)]
    both = [e["name"] for e in read_evaluations(first) if e["name"] in names]
    if not both:
        raise UserError(
            f"{first} and {second} have no evaluation of one name: name two with --evaluations."
        )
    return both[-1:] * 2


def _describe(entry: dict) -> str:
    episodes = {split: summary["episodes"] for split, summary in entry["splits"].items()}
    counts = ", ".join(f"{n} of {split}" for split, n in episodes.items())
    return f"{entry['name']!r} (step {entry['step']}, temperature {entry['temperature']}; {counts})"


def _entry(folder: str, name: str) -> dict:
    entry = evaluation(folder, name)
    if entry is None:
        have = ", ".join(repr(e["name"]) for e in read_evaluations(folder)) or "none"
        raise UserError(f"{folder} has no evaluation {name!r}; it has {have}.")
    return entry


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
