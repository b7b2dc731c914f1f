"""What environments cost: steps, resets, forks, memory; ours beside the stock way of using them.

    python benchmarks/environments.py --out docs/environments.json

Everything runs in one process, one environment after the other, on expert paths of train tasks. A
fork of ours is what the pool does: start the task in another environment and replay its actions.
A stock environment that cannot be installed here is listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from spark_jax.envs.trajectory import Trajectory  # noqa: E402
from spark_jax.types import Task  # noqa: E402

DEPTHS = (5, 20, 50)


class Row(NamedTuple):
    """Medians in milliseconds; megabytes of one environment."""

    name: str
    reset_ms: float
    step_ms: float
    fork_ms: dict[int, float]  # by depth
    memory_mb: float
    reason: str = ""  # why it was not measured


def measure(
    name: str,
    start: Callable[[Task], None],
    step: Callable[[str], None],
    paths: Sequence[Trajectory],
    memory: Callable[[], float],
) -> Row:
    """Plays the paths; `start` and `step` drive one environment that is there already."""
    resets, steps, forks = [], [], {depth: [] for depth in DEPTHS}
    start(paths[0].task)
    for path in paths:
        resets.append(_ms(lambda: start(path.task)))  # noqa: B023
        for action in [s.action for s in path.steps[:-1]]:
            steps.append(_ms(lambda: step(action)))  # noqa: B023
    for path in paths[:5]:
        actions = [s.action for s in path.steps[:-1]] or ["look around"]
        for depth in DEPTHS:
            repeated = [actions[i % len(actions)] for i in range(depth)]
            forks[depth].append(_ms(lambda: (start(path.task), [step(a) for a in repeated])))  # noqa: B023
    fork_ms = {depth: statistics.median(times) for depth, times in forks.items()}
    return Row(name, statistics.median(resets), statistics.median(steps), fork_ms, memory())


def _ms(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def resident_mb(pid: int | None = None) -> float:
    """Resident memory of a process (this one by default)."""
    status = pathlib.Path(f"/proc/{pid or os.getpid()}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line) / 1024


def scienceworld(paths: int) -> list[Row]:
    from spark_jax.envs import expert
    from spark_jax.envs.scienceworld import ScienceWorldEnvironment, split_tasks
    from spark_jax.envs.tasks import by_type, distinct_tasks

    tasks = distinct_tasks(by_type(split_tasks("default", "held_out", "train")), paths, 0)
    cache = pathlib.Path.home() / ".cache" / "spark_jax" / "gold"
    gold = expert.gold_paths(tasks, 1, cache, lambda done, total: None, "full")
    ours = ScienceWorldEnvironment()
    rows = [
        measure("ScienceWorld, ours", ours.start, ours.step, gold, lambda: resident_mb(ours.pid))
    ]
    ours.close()
    return [*rows, _stock_scienceworld(gold)]


def _stock_scienceworld(gold: Sequence[Trajectory]) -> Row:
    from scienceworld import ScienceWorldEnv

    from spark_jax.envs.java import java_commands

    java = pathlib.Path(java_commands()[0])
    os.environ["PATH"] = f"{java.parent}{os.pathsep}{os.environ['PATH']}"  # it runs `java`
    before = _java_processes()
    env = ScienceWorldEnv("", envStepLimit=1000)
    (pid,) = _java_processes() - before

    def start(task: Task) -> None:
        env.load(task.type, task.variation, "easy")
        env.reset()

    row = measure("ScienceWorld, stock", start, env.step, gold, lambda: resident_mb(pid))
    env.close()
    return row


def _java_processes() -> set[int]:
    found = set()
    for folder in pathlib.Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and (folder / "comm").read_text().strip() == "java":
                found.add(int(folder.name))
        except OSError:
            continue
    return found


def webshop(paths: int) -> list[Row]:
    from spark_jax.envs.webshop.environment import WebShopEnvironment
    from spark_jax.envs.webshop.shopper import shop
    from spark_jax.envs.webshop.tasks import split_tasks

    before = resident_mb()
    env = WebShopEnvironment()
    tasks = split_tasks("default", "all_types", "", "train")[:paths]
    played = [shop(env, task) for task in tasks]
    ours = measure(
        "WebShop (embedded shop), ours", env.start, env.step, played, lambda: resident_mb() - before
    )
    reason = "needs Java 11, spaCy, faiss and gym 0.24, which do not install side by side"
    return [ours, Row("WebShop, stock", 0, 0, {}, 0, reason)]


WORLDS = {"scienceworld": scienceworld, "webshop": webshop}


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    forks = " | ".join(f"fork at {depth}, ms" for depth in DEPTHS)
    lines = [
        f"| environment | reset, ms | step, ms | steps/s | {forks} | memory, MB |",
        "|---" * (5 + len(DEPTHS)) + "|",
    ]
    for row in rows:
        if row.reason:
            lines.append(f"| {row.name} | not measured: {row.reason}" + " |" * (4 + len(DEPTHS)))
            continue
        forked = " | ".join(f"{row.fork_ms[depth]:.2f}" for depth in DEPTHS)
        lines.append(
            f"| {row.name} | {row.reset_ms:.2f} | {row.step_ms:.3f} | {1000 / row.step_ms:.0f} "
            f"| {forked} | {row.memory_mb:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", default=",".join(WORLDS))
    parser.add_argument("--paths", type=int, default=20, help="expert paths of each world")
    parser.add_argument("--out", type=pathlib.Path, help="write the rows as JSON too")
    options = parser.parse_args()
    rows = [row for name in options.worlds.split(",") for row in WORLDS[name](options.paths)]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n\n{table(rows)}")
    if options.out:
        options.out.write_text(json.dumps([row._asdict() for row in rows], indent=1))


if __name__ == "__main__":
    main()
