"""Tables and plot of benchmarks/evidence.py, from work folders alone."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from spark_jax.run.config import read_config
from spark_jax.run.cost_plot import plot_costs
from spark_jax.run.costs import (
    curve,
    evaluated,
    evaluation,
    last_evaluation,
    outcomes,
    rows_after_warmup,
    running_mean,
    same_panel,
    spent,
)
from spark_jax.run.metrics import read_metrics
from spark_jax.run.statistics import bootstrap, paired_difference, percent, points

LABELS = {
    "spark": "SPARK",
    "grpo": "GRPO",
    "gigpo": "GiGPO",
    "rlvmr": "RLVMR",
    "random": "random forks",
    "always": "forks everywhere",
    "path": "SPARK, leaves weighed by path",
    "sft": "more SFT",
    "calibrated": "SPARK, calibrated signal",
    "sibling": "SPARK, sibling advantage",
    "eto": "ETO",
    "warmup": "all others",
    "warmup-rlvmr": "RLVMR",
}
BASELINES = ("grpo", "sft")  # gains are compared with those of the first that was played
RUNNING = 3  # iterations that the curve of train success is averaged over

Folders = Mapping[tuple[str, int], pathlib.Path]  # (method, seed) -> work folder


class Ended(NamedTuple):
    """What is read of a run that has ended."""

    before: dict[str, Any]  # evaluations
    after: dict[str, Any]
    rows: list[dict[str, Any]]  # of metrics.jsonl, after the warm-up
    leaves: int  # N, the leaf budget of a tree

    def total(self, metric: str) -> float:
        return sum(row.get(metric, 0) for row in self.rows)


def ended(folders: Folders) -> dict[str, dict[int, Ended]]:
    """Method -> seed -> run, of the runs that have ended."""
    out: dict[str, dict[int, Ended]] = {}
    for (method, seed), folder in folders.items():
        after, before = last_evaluation(folder), evaluation(folder, "after warm-up")
        if after and before:
            leaves = read_config(folder).tree.leaves
            run = Ended(before, after, rows_after_warmup(folder), leaves)
            out.setdefault(method, {})[seed] = run
    return out


def report(folders: Folders, warmups: Folders, plan: Any, budget: int) -> str:
    """Markdown; IMAGE stands for the name of the plot.

    Args:
      folders: of every run that belongs to the comparison, there or not.
      warmups: of the warm-ups that have ended.
      plan: `config`, `overrides`, `tokens`, `first_seed` of benchmarks/evidence.py.
      budget: tokens of each method; 0 if that is not known yet.
    """
    runs = ended(folders)
    seeds = sorted({seed for _, seed in folders})
    missing = [(m, s) for m, s in folders if s not in runs.get(m, {})]
    lines = [f"# {plan.config}: methods at the same number of sampled tokens", ""]
    if missing:
        of = {m: [str(s) for n, s in missing if n == m] for m, _ in missing}
        named = "; ".join(
            f"{LABELS[m]} (seed{'s' * (len(some) > 1)} {', '.join(some)})" for m, some in of.items()
        )
        lines += [f"**Partial: {len(missing)} of {len(folders)} runs are missing: {named}.**", ""]
    lines += _settings(plan, budget, list(dict.fromkeys(m for m, _ in folders)), seeds)
    if runs:
        lines += ["", "![success against cost](IMAGE)", "", *costs_table(runs)]
        for split in sorted(
            {s for of in runs.values() for r in of.values() for s in r.after["splits"]}
        ):
            lines += ["", *split_table(runs, split)]
        lines += ["", *why_table(runs), "", *seeds_table(runs)]
    if warmups:
        lines += ["", *warmups_table(warmups)]
    return "\n".join(lines) + "\n"


def _settings(plan: Any, budget: int, methods: Sequence[str], seeds: Sequence[int]) -> list[str]:
    command = ["python benchmarks/evidence.py", f"--config={plan.config}"]
    command += [f"--methods={','.join(methods)}"]
    command += [f"--warmup={plan.warmup}"] if plan.warmup else []
    command += [f"--tokens={plan.tokens}"] if plan.tokens else []
    command += [f"--config.{setting}" for setting in plan.overrides]
    origin = "given"
    if not plan.tokens:
        origin = f"what SPARK samples in its rl.iterations, seed {plan.first_seed}"
    return [
        "```",
        " ".join(command),
        "```",
        "",
        f"Budget: {f'{budget:,}' if budget else 'not known yet:'} sampled tokens of RL for each "
        f"method ({origin}); a run ends with the iteration in which it gets there. Seeds "
        f"{', '.join(map(str, seeds))}. How it is fair, and what the columns are: "
        "[README.md](README.md).",
    ]


def costs_table(runs: Mapping[str, Mapping[int, Ended]]) -> list[str]:
    """What each method spent after the warm-up: means over seeds."""
    lines = _head(
        "## Cost, mean over seeds", "method", "seeds", "iterations", "sampled tokens",
        "environment steps", "of them replayed", "seconds",
    )  # fmt: skip
    for method, of in runs.items():
        costs = [spent(run.rows) for run in of.values()]
        cells = [
            str(len(of)),
            _number([len(run.rows) for run in of.values()]) if method != "sft" else "–",
            _number([c["sampled tokens"] for c in costs]),
            _number([c["environment steps"] for c in costs]),
            _number([run.total("rollout/replay_steps") for run in of.values()]),
            _number([c["seconds of training"] for c in costs]),
        ]
        lines.append(_row(LABELS[method], *cells))
    return lines


def split_table(runs: Mapping[str, Mapping[int, Ended]], split: str) -> list[str]:
    """Success on a split before and after, the paired gain, and the paired difference to the gain
    of the baseline from the same warm-ups; intervals over seeds and episodes."""
    have = {
        method: {seed: run for seed, run in of.items() if split in run.after["splits"]}
        for method, of in runs.items()
    }
    entries = [e for of in have.values() for run in of.values() for e in (run.before, run.after)]
    same_panel(entries, split)
    count = len(outcomes(entries[0], split))
    baseline = next((method for method in BASELINES if method in runs), None)
    columns = ["method", "seeds", "after warm-up", "after", "gain, points"]
    columns += [f"gain over that of {LABELS[baseline]}, points"] if baseline else []
    lines = _head(f"## {split}: success of {count} episodes a seed, %", *columns)
    for method, of in have.items():
        if not of:
            continue
        before = [outcomes(run.before, split) for run in of.values()]
        after = [outcomes(run.after, split) for run in of.values()]
        cells = [
            LABELS[method],
            str(len(of)),
            percent(bootstrap(before)),
            percent(bootstrap(after)),
            points(paired_difference(before, after)),
        ]
        if baseline:
            cells.append("" if method == baseline else _over_baseline(of, have[baseline], split))
        lines.append(_row(*cells))
    return lines


def _over_baseline(of: Mapping[int, Ended], base: Mapping[int, Ended], split: str) -> str:
    """How much more a method gained than the baseline, episode by episode. From the same warm-up
    that is the difference of what they reach; RLVMR has another one, so its start is taken off."""
    both = [seed for seed in of if seed in base]
    if not both:
        return "–"
    return points(paired_difference([_gains(base[s], split) for s in both],
                                    [_gains(of[s], split) for s in both]))  # fmt: skip


def _gains(run: Ended, split: str) -> list[float]:
    pairs = zip(outcomes(run.before, split), outcomes(run.after, split), strict=True)
    return [b - a for a, b in pairs]


def why_table(runs: Mapping[str, Mapping[int, Ended]]) -> list[str]:
    """What the sampled tokens bought, over all iterations and seeds."""
    lines = _head(
        "## What the tokens bought", "method", "groups of mixed outcome", "leaves of the budget",
        "tokens a leaf", "forks a group", "forks at explore steps that split outcomes",
        "forks elsewhere that do", "explore steps", "KL at the end",
        "train success, first → last third",
    )  # fmt: skip
    for method, of in runs.items():
        if method == "sft":
            continue

        def total(metric: str, of: Mapping[int, Ended] = of) -> float:
            return sum(run.total(metric) for run in of.values())

        groups, leaves = total("rollout/groups"), total("rollout/leaves")
        most = sum(run.leaves * run.total("rollout/groups") for run in of.values())
        forks, explore = total("rollout/forks"), total("rollout/explore_forks")
        split, there = total("rollout/splitting_forks"), total("rollout/explore_splitting_forks")
        explored = sum(
            row["rollout/explore_rate"] * row["rollout/responses"]
            for run in of.values()
            for row in run.rows
        )
        kl = [run.rows[-1]["train/kl"] for run in of.values() if "train/kl" in run.rows[-1]]
        lines.append(
            _row(
                LABELS[method],
                _share(total("rollout/informative_groups"), groups),
                _share(leaves, most),
                f"{total('rollout/response_tokens') / leaves:.0f}",
                f"{forks / groups:.1f}",
                _share(there, explore),
                _share(split - there, forks - explore),
                _share(explored, total("rollout/responses")),
                f"{sum(kl) / len(kl):.3f}" if kl else "–",
                " → ".join(f"{100 * x:.1f}" for x in _thirds(of)),
            )
        )
    return lines


def _thirds(of: Mapping[int, Ended]) -> tuple[float, float]:
    """Success of the policy on train tasks in the first and the last third of the iterations."""
    ends: tuple[list[float], list[float]] = ([], [])
    for run in of.values():
        rates = [row["rollout/path_success_rate"] for row in run.rows]
        third = max(1, len(rates) // 3)
        for out, part in zip(ends, (rates[:third], rates[-third:]), strict=True):
            out.append(sum(part) / len(part))
    return sum(ends[0]) / len(ends[0]), sum(ends[1]) / len(ends[1])


def seeds_table(runs: Mapping[str, Mapping[int, Ended]]) -> list[str]:
    """Every run by itself."""
    splits = _splits(runs)
    lines = _head(
        "## Every run", "method", "seed", *(f"{split}, %" for split in splits), "sampled tokens",
        "seconds",
    )  # fmt: skip
    for method, of in runs.items():
        for seed, run in sorted(of.items()):
            cells = []
            for split in splits:
                both = [e["splits"].get(split) for e in (run.before, run.after)]
                rates = [f"{100 * e['success_rate']:.1f}" if e else "–" for e in both]
                cells.append(" → ".join(rates))
            costs = spent(run.rows)
            tokens, seconds = costs["sampled tokens"], costs["seconds of training"]
            lines.append(
                _row(LABELS[method], str(seed), *cells, _number([tokens]), _number([seconds]))
            )
    return lines


def warmups_table(warmups: Folders) -> list[str]:
    """What came before, and is not part of the budget."""
    lines = _head(
        "## Warm-ups", "of", "seed", "dialogues", "epochs", "tokens of dialogues", "seconds",
        "epochs' loss, last",
    )  # fmt: skip
    for (name, seed), folder in sorted(warmups.items()):
        source = folder
        while not any(r["phase"] == "sft" for r in read_metrics(source)):
            taken = read_config(source).sft.from_run
            if not taken:
                break
            source = pathlib.Path(taken)
        rows = [row for row in read_metrics(source) if row["phase"] == "sft"]
        with open(source / "warmup.jsonl", encoding="utf-8") as file:
            dialogues = sum(1 for _ in file)
        lines.append(
            _row(
                LABELS[name],
                str(seed),
                str(dialogues),
                str(len(rows)),
                _number([sum(row["train/packed_tokens"] for row in rows)]),
                _number([sum(row["time/update_s"] for row in rows)]),
                f"{rows[-1]['train/loss']:.3f}" if rows else "–",
            )
        )
    return lines


def plot(folders: Folders, file: pathlib.Path) -> None:
    """Success on train tasks and in evaluations against what it has cost, of runs that have ended:
    a line ends with its seed that spent least."""
    runs = ended(folders)
    of = {LABELS[m]: [folders[m, seed] for seed in seeds] for m, seeds in runs.items()}
    metric = "rollout/path_success_rate"
    panels = {
        f"success on train tasks, %\n(mean of {RUNNING} iterations)": {
            name: [running_mean(curve(f, metric), RUNNING) for f in group]
            for name, group in of.items()
        }
    }
    for split in _splits(runs):
        panels[f"success on {split}, %"] = {
            name: [evaluated(f, split) for f in group] for name, group in of.items()
        }
    plot_costs(panels, file)


def _splits(runs: Mapping[str, Mapping[int, Ended]]) -> list[str]:
    return sorted({s for of in runs.values() for run in of.values() for s in run.after["splits"]})


def _head(title: str, *columns: str) -> list[str]:
    return [title, "", _row(*columns), "|---" * len(columns) + "|"]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(values: Sequence[float]) -> str:
    """Mean of the values, whole."""
    return f"{sum(values) / len(values):,.0f}"


def _share(part: float, whole: float) -> str:
    """A share in %, with the numbers it is of; – of nothing."""
    return f"{100 * part / whole:.1f} % of {whole:,.0f}" if whole else "–"
