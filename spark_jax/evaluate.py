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
import math
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from spark_jax.run.command_line import Parser, exit_code, parse
from spark_jax.run.config import read_config
from spark_jax.run.defaults import flatten
from spark_jax.run.endpoint_options import (
    add_endpoint_options,
    connected,
    describe_cost,
    prices_of,
)
from spark_jax.run.evalfile import evaluation, is_own, read_evaluations
from spark_jax.run.prompted import Prompted, evaluate_prompted
from spark_jax.run.rules import SPLITS
from spark_jax.run.summary import compare, print_summary, print_types, shared_tasks
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
        nargs=2,
        default=(),
        metavar=("NAME_A", "NAME_B"),
        help="with --compare: A's and B's evaluation; default: the last that both have",
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
    if config is not None and (workdir / "config.json").is_file():
        _tell_differences(read_config(workdir), config)
    config = config or read_config(workdir)
    from spark_jax.run.evaluator import Request, evaluate  # JAX from here on

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
    for split, count in entry["leaked"].items():
        if count is None:
            print(f"{split}: whether the model was trained on these tasks is not known")
        else:
            episodes = entry["splits"][split]["episodes"]
            print(f"{split}: {count} of {episodes} episodes play a task of the training data")


def _tell_differences(trained: ConfigDict, config: ConfigDict) -> None:
    """Says in which settings of the task and the prompt the evaluation departs from the run."""
    theirs, ours = flatten(trained), flatten(config)
    changed = [
        f"{key}={ours[key]} (trained with {theirs.get(key)})"
        for key in ours
        if key.startswith(("algo.name", "env.", "model.")) and theirs.get(key) != ours[key]
        and key != "env.workers"
    ]  # fmt: skip
    if changed:
        print(
            f"evaluates under other settings than the run's: {', '.join(changed)}", file=sys.stderr
        )


def evaluate_endpoint(options: argparse.Namespace, config: ConfigDict | None) -> None:
    """The same for a model behind an endpoint."""
    if config is None:
        if not options.workdir:
            raise UserError("--endpoint needs --config=configs/scienceworld.py, or a work folder.")
        config = read_config(options.workdir)
    if options.checkpoint != "newest" or options.seed or options.fork:
        raise UserError(
            "--checkpoint, --seed and --fork are for models of ours; leave them out with "
            "--endpoint."
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
    given = options.temperature
    if given is not None and not 0 <= given < math.inf:
        raise UserError(f"--temperature={given:g} has to be 0 (greedy) or a positive number.")
    return config.eval.temperature if given is None else given


def _name(options: argparse.Namespace, who: str, temperature: float) -> str:
    """--name, or a name that says what was asked for, so that nothing else replaces it."""
    name = options.name
    if "/" in name or name.startswith("."):
        raise UserError(f"--name={name} would be a path; choose a name without / and leading dot.")
    if is_own(name):
        raise UserError(
            f"--name={name} is that of an evaluation of the run itself; choose another."
        )
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


# What two evaluations are compared in: title, field of their results, unit.
COMPARED = (
    ("success, points", "success", 0.01),
    ("score", "score", 1.0),
    ("steps", "steps", 1.0),
    ("tokens", "response_tokens", 1.0),
)


def print_comparison(first: str, second: str, names: Sequence[str]) -> None:
    """Paired differences of two runs on the tasks that both played."""
    from spark_jax.run.seen import same_data  # after mistakes are known: JAX takes a second

    configs = [read_config(f) for f in (first, second) if (Path(f) / "config.json").is_file()]
    if len(configs) == 2 and not same_data(*configs):
        raise UserError(
            f"{first} and {second} played other tasks under the same numbers (config.env.name, "
            "config.env.data_dir, or WebShop's config.env.tasks differ): they cannot be paired."
        )
    wanted = names or _last_of_both(first, second)
    a, b = (_entry(folder, name) for folder, name in zip((first, second), wanted, strict=True))
    shared = sorted(set(a["splits"]) & set(b["splits"]))
    if not shared:
        raise UserError(f"{first} and {second} have no split in common: evaluate both on one.")
    both = {split: shared_tasks(a, b, split) for split in shared}
    if not any(both.values()):
        raise UserError(f"{first} and {second} have played no task in common: evaluate both anew.")
    print(f"B = {second}, {_describe(b)}\nA = {first}, {_describe(a)}")
    for split, tasks in both.items():
        print(f"{split}, B - A on the {tasks} tasks that both played:")
        for title, field, unit in COMPARED if tasks else ():
            d = compare(a, b, split, field)
            estimate, low, high = (f"{x / unit:+.1f}" for x in d[:3])
            p = "p < 0.001" if d.p_value < 0.001 else f"p = {d.p_value:.3f}"
            print(f"  {title}: {estimate} [{low}, {high}], {p}")


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
