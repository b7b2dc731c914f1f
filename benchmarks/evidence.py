"""Which method teaches more with the same sampled tokens: from the same warm-ups, over seeds.

    python benchmarks/evidence.py --config=configs/webshop.py --methods=spark,sft
    python benchmarks/evidence.py --config=configs/webshop.py --table --docs=tables/webshop.md

For each seed one warm-up, from which every method starts (RLVMR has other tags and so a warm-up of
its own), and for each method RL until it has sampled as many tokens as the first run of SPARK did
in its rl.iterations (or --tokens). Random forks get the rate at which SPARK's run of the same seed
wrote <explore>; more SFT gets the seconds that its RL took. Every run is a process of its own, and
a second call goes on where the first one stopped. Several calls may run side by side, with
other --seeds or --methods or with the same ones: no run is ever played by two of them. The tables
and the plot are printed and written to RUNS/evidence.md and .svg after every call, with a list of
what is missing of the methods that were asked for or begun. Any setting that methods do not
differ in may be overridden (--config.rl.tasks_per_iteration=8); it holds for all runs.
docs/results/README.md says how the comparison is fair and how to read it.
"""

from __future__ import annotations

import fcntl
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple, TextIO

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.evidence_report import plot, report  # noqa: E402
from spark_jax.run.command_line import Parser, exit_code, read_seeds  # noqa: E402
from spark_jax.run.config import load_config  # noqa: E402
from spark_jax.run.costs import last_evaluation, rows_after_warmup, spent  # noqa: E402
from spark_jax.run.files import write_text  # noqa: E402
from spark_jax.types import UserError  # noqa: E402

DEFAULT = "configs/scienceworld.py"
SEEDS = (0, 1, 2)  # fixed before anything was run
WARMUPS = {"warmup": (), "warmup-rlvmr": ("algo.name=rlvmr",)}
SEPARATE = "tree.roots={leaves}"  # separate episodes, whatever tree.roots is for the trees
METHODS = {  # name -> what it sets; in braces what is only known when it starts
    "spark": (),
    "grpo": ("algo.name=grpo", SEPARATE),
    "gigpo": ("algo.name=gigpo", SEPARATE),
    "rlvmr": ("algo.name=rlvmr", SEPARATE),
    "random": ("tree.signal=random", "tree.signal_rate={rate:.4f}"),
    "always": ("tree.signal=always",),
    "path": ("algo.leaf_weight=path",),
    "sft": ("algo.name=sft", "sft.extra_seconds={seconds:.1f}"),
}
MORE_METHODS = {  # only where --methods names them
    "calibrated": ("tree.signal=calibrated",),
    "sibling": ("algo.advantage=sibling",),
    "eto": ("algo.name=eto", SEPARATE),
}
OWN_KEYS = {"seed", "sft.from_run", "rl.sampled_tokens"} | {
    setting.split("=")[0]
    for settings in (METHODS | MORE_METHODS).values()
    for setting in settings
    if setting != SEPARATE
}
WAIT = 5.0  # seconds between two looks at what other processes are doing


class Run(NamedTuple):
    """One of WARMUPS or of the methods, with one seed."""

    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method} seed {self.seed}"


class Plan(NamedTuple):
    """What all runs of a folder share; kept in plan.json."""

    config: str
    overrides: tuple[str, ...]  # KEY=VALUE
    warmup: str  # work folders of warm-ups made before, with {seed}; "": made here
    tokens: int  # 0: those of SPARK with `first_seed`
    first_seed: int


def folder(runs: pathlib.Path, run: Run) -> pathlib.Path:
    """The work folder of a run."""
    return runs / run.method / f"seed{run.seed}"


def needs(plan: Plan, run: Run) -> list[Run]:
    """What has to be done before."""
    if run.method in WARMUPS:
        return []
    out = [Run("warmup-rlvmr" if run.method == "rlvmr" else "warmup", run.seed)]
    budget = Run("spark", plan.first_seed)
    if not plan.tokens and run != budget and run.method != "sft":
        out.append(budget)
    if run.method in ("random", "sft"):
        out.append(Run("spark", run.seed))
    return out


def in_order(plan: Plan, seeds: Sequence[int], methods: Sequence[str]) -> list[Run]:
    """The runs of these seeds and methods, and all they need, in an order that can be played."""
    out: list[Run] = []

    def add(run: Run) -> None:
        for before in needs(plan, run):
            add(before)
        if run not in out:
            out.append(run)

    for seed in seeds:
        for method in methods:
            add(Run(method, seed))
    return out


def budget(runs: pathlib.Path, plan: Plan) -> int:
    """Sampled tokens of each method; 0 while that is not known."""
    first = folder(runs, Run("spark", plan.first_seed))
    if plan.tokens or not last_evaluation(first):
        return plan.tokens
    return int(spent(rows_after_warmup(first))["sampled tokens"])


def explore_rate(spark: pathlib.Path) -> float:
    """Share of the sampled responses of a run that hold an <explore>."""
    rows = rows_after_warmup(spark)
    explored = sum(row["rollout/explore_rate"] * row["rollout/responses"] for row in rows)
    return explored / sum(row["rollout/responses"] for row in rows)


def overrides(runs: pathlib.Path, plan: Plan, run: Run) -> list[str]:
    """KEY=VALUE of a run whose needs are done."""
    out = ["eval.episodes=0", *plan.overrides, f"seed={run.seed}"]
    if run.method in WARMUPS:
        out += [*WARMUPS[run.method], "rl.iterations=0"]
        if plan.warmup and run.method == "warmup":
            out.append(f"sft.from_run={plan.warmup.format(seed=run.seed)}")
        return _last_of_each_key(out)
    warmup, spark = needs(plan, run)[0], folder(runs, Run("spark", run.seed))
    out.append(f"sft.from_run={folder(runs, warmup)}")
    known: dict[str, float] = {"leaves": load_config(plan.config, plan.overrides).tree.leaves}
    if run.method == "random":
        known["rate"] = explore_rate(spark)
    if run.method == "sft":
        known["seconds"] = spent(rows_after_warmup(spark))["seconds of training"]
    elif plan.tokens or run != Run("spark", plan.first_seed):
        out.append(f"rl.sampled_tokens={budget(runs, plan)}")
    out += [setting.format(**known) for setting in (METHODS | MORE_METHODS)[run.method]]
    return _last_of_each_key(out)


def _last_of_each_key(settings: Sequence[str]) -> list[str]:
    values = dict(setting.split("=", 1) for setting in settings)
    return [f"{key}={value}" for key, value in values.items()]


def play(runs: pathlib.Path, plan: Plan, run: Run, lock: TextIO) -> None:
    """One run as a process of its own. It holds the lock as well: should this process be killed,
    nobody else starts the run while its process is still writing."""
    command = [sys.executable, "-m", "spark_jax.main", f"--config={plan.config}"]
    command += [f"--workdir={folder(runs, run)}"]
    command += [f"--config.{setting}" for setting in overrides(runs, plan, run)]
    print("$", " ".join(command), flush=True)
    subprocess.run(command, pass_fds=(lock.fileno(),))


def take(path: pathlib.Path, wait: bool = False) -> TextIO | None:
    """The open file `path`, locked until it is closed here and in the processes it is handed to;
    None if another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    return file


def is_done(runs: pathlib.Path, run: Run) -> bool:
    return last_evaluation(folder(runs, run)) is not None


def play_all(runs: pathlib.Path, plan: Plan, todo: Sequence[Run]) -> list[Run]:
    """Plays what is not done; returns the runs that failed, and those that needed them.

    A run that another process is playing is left to it. This one waits only where a run of its own
    needs one of those.
    """
    left, failed, told = list(todo), [], False
    while left:
        for run in left:
            if is_done(runs, run) or any(before in failed for before in needs(plan, run)):
                failed += [] if is_done(runs, run) else [run]
                left.remove(run)
                break
            if not all(is_done(runs, before) for before in needs(plan, run)):
                continue
            lock = take(folder(runs, run).with_suffix(".lock"))
            if lock is None:
                continue
            with lock:
                if not is_done(runs, run):  # it may have ended since
                    print(f"\n[{len(todo) - len(left) + 1} of {len(todo)}] {run}", flush=True)
                    play(runs, plan, run, lock)
                failed += [] if is_done(runs, run) else [run]
            left.remove(run)
            break
        else:
            blocked = [r for r in left if not all(is_done(runs, n) for n in needs(plan, r))]
            if not blocked:
                print(f"already running elsewhere: {', '.join(map(str, left))}", flush=True)
                break
            if not told:
                print(f"waiting for what {blocked[0]} needs, which runs elsewhere", flush=True)
                told = True
            time.sleep(WAIT)
    return failed


def settle_plan(runs: pathlib.Path, asked: Plan) -> Plan:
    """Writes plan.json, or checks that the runs of that folder were started with the same settings;
    what is not asked for is taken from there."""
    path = runs / "plan.json"
    with take(runs / "plan.lock", wait=True):
        if path.is_file():
            old = json.loads(path.read_text(encoding="utf-8"))
            old["overrides"] = tuple(old["overrides"])
            for name, value in asked._replace(first_seed=0)._asdict().items():
                if value and value != old[name]:
                    raise UserError(
                        f"the runs in {runs} were started with {name} {_shown(old[name])}, not "
                        f"{_shown(value)}; methods are compared with the same settings, so use "
                        "the old ones or another --runs."
                    )
            return Plan(**old)
        plan = asked._replace(config=asked.config or DEFAULT)
        load_config(plan.config, plan.overrides)  # mistakes end here, before anything is written
        write_text(path, json.dumps(plan._asdict(), indent=1) + "\n")
        return plan


def _shown(value: object) -> str:
    return " ".join(value) or "none" if isinstance(value, tuple) else str(value or "none")


def main(argv: Sequence[str]) -> int:
    parser = Parser(prog="benchmarks/evidence.py", description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="", help=f"default: {DEFAULT}")
    parser.add_argument(
        "--runs", default="", help="folder of the work folders; default: runs/evidence-CONFIG"
    )
    parser.add_argument("--seeds", default="", help="of this call; default: 0,1,2")
    parser.add_argument(
        "--methods",
        default=",".join(METHODS),
        help=f"of this call; also {', '.join(MORE_METHODS)}",
    )
    parser.add_argument("--tokens", type=int, default=0, help="each method samples; 0: as SPARK")
    parser.add_argument("--warmup", default="", help="work folders of warm-ups, with {seed}")
    parser.add_argument("--table", action="store_true", help="collect what is there, nothing runs")
    parser.add_argument("--docs", default="", help="Markdown file for tables; the plot beside it")
    extra = [word for word in argv if word.startswith("--config.")]
    if any("=" not in word for word in extra):
        raise UserError("overrides are one word here: --config.tree.leaves=16.")
    options = parser.parse_args([word for word in argv if word not in extra])
    settings = tuple(sorted(word.removeprefix("--config.") for word in extra))
    for setting in settings:
        if setting.split("=")[0] in OWN_KEYS:
            raise UserError(
                f"config.{setting.split('=')[0]} differs between the runs that are compared; "
                "leave it out (or use launch/sweep.py)."
            )
    seeds = read_seeds(options.seeds) if options.seeds else [*SEEDS]
    methods = options.methods.split(",")
    known = METHODS | MORE_METHODS
    if unknown := [name for name in methods if name not in known]:
        raise UserError(f"there is no method {unknown[0]!r}; choose from {', '.join(known)}.")
    if options.tokens < 0:
        raise UserError(f"--tokens is {options.tokens}; it has to be 1 or more.")
    config = pathlib.PurePath(options.config or DEFAULT).name.replace(".py", "").replace(":", "-")
    runs = pathlib.Path(options.runs or f"runs/evidence-{config}")
    if options.table and not (runs / "plan.json").is_file():
        raise UserError(f"{runs} holds no runs of this command, so there is nothing to collect.")
    asked = Plan(options.config, settings, options.warmup, options.tokens, seeds[0])
    plan = settle_plan(runs, asked)
    failed = [] if options.table else play_all(runs, plan, in_order(plan, seeds, methods))

    named = [method for method in known if method in methods or (runs / method).is_dir()]
    wanted = [Run(method, seed) for method in named for seed in sorted({*SEEDS, *seeds})]
    folders = {run: folder(runs, run) for run in wanted}
    warmups = {
        run: folder(runs, run)
        for run in dict.fromkeys(needs(plan, run)[0] for run in wanted)
        if is_done(runs, run)
    }
    text = report(folders, warmups, plan, budget(runs, plan))
    files = [runs / "evidence.md"] + ([pathlib.Path(options.docs)] if options.docs else [])
    for file in files:
        image = file.with_suffix(".svg")
        write_text(file, text.replace("IMAGE", image.name))
        plot(folders, image)
    print(f"\n{text}\n{', '.join(map(str, files))}")
    if failed:
        print(f"failed: {', '.join(map(str, failed))}; the same command goes on.", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
