"""What sampling a tree costs as it gets more leaves, gets deeper, and has more others beside it.

    python benchmarks/scaling.py --model tiny --plot docs/scaling.svg

Synthetic trees with forced lengths: a prompt, a trunk that all leaves share for three quarters of
the steps, then one branch per leaf. Each tree is sampled as a tree and as separate episodes. The
cost should follow the unique tokens, not leaves times length.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.workload import Shape  # noqa: E402

PROMPT, RESPONSE, OBSERVATION = 100, 24, 30  # tokens, about those of the tiny preset
LEAVES = (1, 2, 4, 8, 16, 32, 64)
DEPTHS = (1, 3, 6, 12, 25, 50)
TASKS = (1, 2, 4, 8, 16, 32, 64)


class Point(NamedTuple):
    size: int  # leaves, steps or tasks
    unique_tokens: int  # response tokens of the trees
    episode_tokens: int  # response tokens of the same leaves as separate episodes
    tree_seconds: float
    episode_seconds: float


def tree(leaves: int, depth: int) -> Shape:
    """A trunk of three quarters of the steps, then `leaves` branches of the rest."""
    trunk = depth * 3 // 4 if leaves > 1 else 0
    parent, response, context = [-1], [0], [PROMPT]

    def chain(start: int, steps: int) -> None:
        for _ in range(steps):
            parent.append(start)
            response.append(RESPONSE)
            context.append(OBSERVATION)
            start = len(parent) - 1

    chain(0, trunk)
    fork = len(parent) - 1
    for _ in range(leaves):
        chain(fork, depth - trunk)
    return Shape(parent, response, context)


def series(model, rows: int, cases: list[tuple[int, list[Shape]]]) -> list[Point]:
    """One engine for all cases, so that nothing is compiled in between."""
    from benchmarks.engines import ours

    engine = ours.make_engine(
        model, rows, max(t.longest() for _, trees in cases for t in trees), share_prefix=True
    )
    ours.play(engine, cases[0][1])  # once before the clock runs
    points = []
    for size, trees in cases:
        episodes = [s for t in trees for s in t.separate()]
        together, apart = ours.play(engine, trees), ours.play(engine, episodes)
        points.append(
            Point(
                size,
                together.computed_tokens,
                apart.computed_tokens,
                together.seconds,
                apart.seconds,
            )
        )
        print(f"  {size}: {together.seconds:.2f} s, {apart.seconds:.2f} s apart", flush=True)
    return points


def table(name: str, points: list[Point]) -> str:
    lines = [
        f"| {name} | unique tokens | tokens of separate episodes | tree, s | separate, s "
        "| ms a unique token | separate / tree |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {p.size} | {p.unique_tokens} | {p.episode_tokens} | {p.tree_seconds:.2f} "
        f"| {p.episode_seconds:.2f} | {1000 * p.tree_seconds / p.unique_tokens:.2f} "
        f"| {p.episode_seconds / p.tree_seconds:.1f} |"
        for p in points
    ]
    return "\n".join(lines)


def plot(results: dict[str, list[Point]], file: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(4 * len(results), 3.4), squeeze=False)
    for axis, (name, points) in zip(axes[0], results.items(), strict=True):
        sizes = [p.size for p in points]
        axis.plot(sizes, [p.tree_seconds for p in points], "o-", label="tree")
        axis.plot(sizes, [p.episode_seconds for p in points], "s--", label="separate episodes")
        axis.set(xscale="log", yscale="log", xlabel=name, ylabel="seconds")
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--plot", type=pathlib.Path)
    options = parser.parse_args()
    from benchmarks.model import load_benchmark_model
    from spark_jax.run.compilations import keep_on_disk

    keep_on_disk()
    model = load_benchmark_model(options.model, options.dtype)
    print(f"{options.model}, {options.rows} rows, {os.cpu_count()} cores", flush=True)
    cases = {
        "leaves": [(n, [tree(n, 12)]) for n in LEAVES],
        "steps": [(n, [tree(8, n)]) for n in DEPTHS],
        "tasks": [(n, [tree(8, 12)] * n) for n in TASKS],
    }
    results = {}
    for name, sizes in cases.items():
        print(name, flush=True)
        results[name] = series(model, options.rows, sizes)
    for name, points in results.items():
        print("\n" + table(name, points))
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
