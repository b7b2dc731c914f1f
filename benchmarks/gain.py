"""What RL adds to the warm-up: several seeds, the whole held-out splits, an SFT control.

    python benchmarks/gain.py --config=configs/scienceworld.py --runs=runs/gain

For each seed three runs, evaluated on the whole of L1 and L2: the warm-up; RL from there; and the
control, which goes on from there with SFT for as long as RL took. A second call goes on where the
first one stopped; seeds may run side by side (--seeds=0 and --seeds=1), and a last call with all of
them makes the table. Any config override may be added. The table is printed and written to
RUNS/gain.md.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys

from spark_jax.run.evalfile import read_evaluations
from spark_jax.run.files import write_text
from spark_jax.run.metrics import read_metrics
from spark_jax.run.statistics import bootstrap, paired_difference, percent, points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/scienceworld.py")
    parser.add_argument("--runs", default="runs/gain", help="folder of the runs' work folders")
    parser.add_argument("--seeds", default="0,1,2")
    options, overrides = parser.parse_known_args()
    runs = pathlib.Path(options.runs)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    pairs = []
    for seed in seeds:
        common = [f"--config={options.config}", f"--config.seed={seed}", *overrides]
        common += ["--config.eval.episodes=0", "--config.eval.splits=L1,L2"]
        warm, rl, control = (runs / f"seed{seed}-{name}" for name in ("warmup", "rl", "control"))
        play(warm, [*common, "--config.rl.iterations=0"])
        common.append(f"--config.sft.from_run={warm}")
        play(rl, common)
        seconds = f"--config.sft.extra_seconds={rl_seconds(rl):.0f}"
        play(control, [*common, "--config.algo.name=sft", seconds])
        pairs.append((read_evaluations(rl), read_evaluations(control)))
    text = table(pairs)
    write_text(runs / "gain.md", text)
    print(text)


def play(workdir: pathlib.Path, arguments: list[str]) -> None:
    """One run as a process of its own; one that is done already only prints its table."""
    command = [sys.executable, "-m", "spark_jax.main", f"--workdir={workdir}", *arguments]
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True)


def rl_seconds(workdir: pathlib.Path) -> float:
    """Wall time of the RL iterations of a run."""
    rows = [row for row in read_metrics(workdir) if row["phase"] == "rl"]
    return sum(row["time/rollout_s"] + row["time/update_s"] for row in rows)


def table(pairs) -> str:
    """Markdown: per split the success rates over all seeds and the paired gains."""
    lines = [
        "| split | episodes | after warm-up | after RL | gain | after more SFT | its gain |",
        "|---|---|---|---|---|---|---|",
    ]
    for split in pairs[0][0][0]["splits"]:
        before, after, control = ([], [], [])
        for rl, sft in pairs:
            before.append(outcomes(rl, "after warm-up", split))
            after.append(outcomes(rl, "after RL", split))
            control.append(outcomes(sft, "after more SFT", split))
        cells = [
            split,
            f"{len(before)} × {len(before[0])}",
            percent(bootstrap(before)),
            percent(bootstrap(after)),
            points(paired_difference(before, after)),
            percent(bootstrap(control)),
            points(paired_difference(before, control)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Per seed (after warm-up → after RL; after more SFT):", ""]
    for i, (rl, sft) in enumerate(pairs):
        parts = []
        for split in rl[0]["splits"]:
            a, b = (mean(outcomes(rl, name, split)) for name in ("after warm-up", "after RL"))
            c = mean(outcomes(sft, "after more SFT", split))
            parts.append(f"{split} {100 * a:.1f} → {100 * b:.1f}; {100 * c:.1f}")
        lines.append(f"- seed {i}: " + ", ".join(parts))
    return "\n".join(lines) + "\n"


def outcomes(evaluations, name: str, split: str) -> list[float]:
    (entry,) = [e for e in evaluations if e["name"] == name]
    return [float(r["success"]) for r in entry["splits"][split]["results"]]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
