"""What RL adds to the warm-up: several seeds, the whole held-out splits, an SFT control.

    python benchmarks/gain.py --config=configs/scienceworld.py --runs=runs/gain

For each seed three runs, evaluated on the whole of L1 and L2: the warm-up; RL from there; and the
control, which goes on from there with SFT for as long as RL took. A second call goes on where the
first one stopped; seeds may run side by side (--seeds=0 and --seeds=1), and a last call with all of
them makes the table. Any config override may be added. The table is printed and written to
RUNS/gain.md. Several methods at an equal number of sampled tokens: benchmarks/evidence.py.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys

from spark_jax.run.costs import outcomes, rows_after_warmup, same_panel, spent
from spark_jax.run.evalfile import evaluation
from spark_jax.run.files import write_text
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
        seconds = spent(rows_after_warmup(rl))["seconds of training"]
        more = f"--config.sft.extra_seconds={seconds:.0f}"
        play(control, [*common, "--config.algo.name=sft", more])
        pairs.append((rl, control))
    text = table(pairs)
    write_text(runs / "gain.md", text)
    print(text)


def play(workdir: pathlib.Path, arguments: list[str]) -> None:
    """One run as a process of its own; one that is done already only prints its table."""
    command = [sys.executable, "-m", "spark_jax.main", f"--workdir={workdir}", *arguments]
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True)


def table(pairs: list[tuple[pathlib.Path, pathlib.Path]]) -> str:
    """Markdown, from the work folders of RL and of the control of each seed: per split the success
    rates over all seeds and the paired gains."""
    lines = [
        "| split | episodes | after warm-up | after RL | gain | after more SFT | its gain |",
        "|---|---|---|---|---|---|---|",
    ]
    entries = [
        (
            evaluation(rl, "after warm-up"),
            evaluation(rl, "after RL"),
            evaluation(control, "after more SFT"),
        )
        for rl, control in pairs
    ]
    splits = list(entries[0][0]["splits"])
    for split in splits:
        same_panel([entry for three in entries for entry in three], split)
        before, after, control = (
            [outcomes(three[i], split) for three in entries] for i in range(3)
        )
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
    for i, three in enumerate(entries):
        parts = []
        for split in splits:
            a, b, c = (100 * entry["splits"][split]["success_rate"] for entry in three)
            parts.append(f"{split} {a:.1f} → {b:.1f}; {c:.1f}")
        lines.append(f"- seed {i}: " + ", ".join(parts))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
