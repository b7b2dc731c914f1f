"""What environments cost: steps, resets, forks, memory; ours beside the stock way of using them.

    python benchmarks/environments.py --out environments.json
    python benchmarks/environments.py --worlds alfworld --paths 200 --episodes 2000
    python benchmarks/environments.py --webshop-stock ../WebShop --webshop-python ../shop/bin/python

Everything runs in one process, one environment after the other, on expert paths of train tasks. A
fork of ours is what the pool does: start the task in another environment and replay its actions, or
take a copy where the environment offers one.
Stock WebShop does not install beside us: --webshop-stock is a checkout of princeton-nlp/WebShop,
set up with the small data set as its README says, --webshop-python the Python of its packages.
Both then sell those products, and pages and rewards are compared, too. Without it a line says that
it was not measured. With --episodes our environments go on for so many episodes, and their memory
on the way is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from spark_jax.envs.base import Environment  # noqa: E402
from spark_jax.envs.copies import Copies  # noqa: E402
from spark_jax.envs.trajectory import ExpertStep, Trajectory  # noqa: E402
from spark_jax.keep import cache_folder  # noqa: E402
from spark_jax.types import PastStep, Start, Task  # noqa: E402

DEPTHS = (5, 20, 50)


class Row(NamedTuple):
    """Medians in milliseconds; megabytes of one environment."""

    name: str
    reset_ms: float
    step_ms: float
    fork_ms: dict[int, float]  # by depth
    memory_mb: float
    reason: str = ""  # why it was not measured
    later_mb: dict[int, float] = {}  # by episodes played: --episodes


def measure(
    name: str,
    start: Callable[[Task], None],
    step: Callable[[str], None],
    paths: Sequence[Trajectory],
    memory: Callable[[], float],
    episodes: int = 0,
    copied: Environment | None = None,
) -> Row:
    """Plays the paths; `start` and `step` drive one environment that is there already. With
    `episodes` it goes on with as many of them, path after path. `copied`: the environment itself,
    where a fork copies it."""
    resets, steps, forks = [], [], {depth: [] for depth in DEPTHS}
    copies = Copies()
    start(paths[0].task)
    for path in paths:
        resets.append(_ms(lambda: start(path.task)))  # noqa: B023
        for action in [s.action for s in path.steps[:-1]]:
            steps.append(_ms(lambda: step(action)))  # noqa: B023
    for path in paths[:5]:
        actions = [s.action for s in path.steps[:-1]] or ["look around"]
        for depth in DEPTHS:
            repeated = [actions[i % len(actions)] for i in range(depth)]
            took = _ms(lambda: (start(path.task), [step(a) for a in repeated]))  # noqa: B023
            if copied is not None:
                state = (path.task, tuple(PastStep(action, "") for action in repeated))
                copies.keep(state, copied)
                took = _ms(lambda: copies.take(state))  # noqa: B023
            forks[depth].append(took)
    fork_ms = {depth: statistics.median(times) for depth, times in forks.items()}
    row = Row(name, statistics.median(resets), statistics.median(steps), fork_ms, memory())
    later_mb = {}
    for episode in range(episodes):
        path = paths[episode % len(paths)]
        start(path.task)
        for action in [s.action for s in path.steps]:
            step(action)
        if (episode + 1) % max(1, episodes // 5) == 0:
            later_mb[episode + 1] = memory()
    return row._replace(later_mb=later_mb)


def _ms(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def resident_mb(pid: int | None = None) -> float:
    """Resident memory of a process (this one by default)."""
    status = pathlib.Path(f"/proc/{pid or os.getpid()}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line) / 1024


def scienceworld(options: argparse.Namespace) -> list[Row]:
    from spark_jax.envs.scienceworld import expert
    from spark_jax.envs.scienceworld.environment import ScienceWorldEnvironment, split_tasks
    from spark_jax.envs.tasks import by_type, distinct_tasks

    tasks = distinct_tasks(by_type(split_tasks("default", "held_out", "train")), options.paths, 0)
    gold = expert.gold_paths(tasks, 1, cache_folder("gold"), lambda done, total: None, "full")
    ours = ScienceWorldEnvironment()
    row = measure(
        "ScienceWorld, ours",
        ours.start,
        ours.step,
        gold,
        lambda: resident_mb(ours.pid),
        options.episodes,
    )
    ours.close()
    return [row, _stock_scienceworld(gold)]


def _stock_scienceworld(gold: Sequence[Trajectory]) -> Row:
    from scienceworld import ScienceWorldEnv

    from spark_jax.envs.scienceworld.java import java_commands

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


def webshop(options: argparse.Namespace) -> list[Row]:
    from spark_jax.envs.webshop.environment import WebShopEnvironment
    from spark_jax.envs.webshop.shopper import shop
    from spark_jax.envs.webshop.tasks import split_tasks

    before = resident_mb()
    env = WebShopEnvironment()
    tasks = split_tasks("default", "all_types", "", "train")[: options.paths]
    played = [shop(env, task) for task in tasks]
    ours = measure(
        "WebShop (embedded shop), ours",
        env.start,
        env.step,
        played,
        lambda: resident_mb() - before,
        options.episodes,
        env,
    )
    if options.webshop_stock:
        stock, python = options.webshop_stock, options.webshop_python
        return [ours, *_both_webshops(options.paths, stock, python)]
    reason = "--webshop-stock is not given; its packages do not install beside ours"
    return [ours, Row("WebShop, stock", 0, 0, {}, 0, reason)]


def _both_webshops(paths: int, stock: pathlib.Path, python: str) -> list[Row]:
    """The set of 1,000 products in both: searched by its title, a product is opened, described,
    its options chosen, bought."""
    from spark_jax.envs.webshop.environment import WebShopEnvironment, open_shop

    data, before = str(stock / "data"), resident_mb()
    shop, env, played = open_shop(data), WebShopEnvironment(data), []
    for number, goal in enumerate(shop.goals):
        task = Task("webshop", goal.category, number)
        begin, search = env.start(task), f"search[{goal.title.replace('[', ' ')}]"
        results = [env.step(search)]
        if goal.asin.lower() not in env.clickables():
            continue  # on a later page of the results
        actions = [goal.asin.lower(), "description", "< prev", *goal.options.values(), "buy now"]
        actions = [f"click[{thing}]" for thing in actions]
        results += [env.step(action) for action in actions]
        steps = tuple(
            ExpertStep(action, result.observation, "", False)
            for action, result in zip([search, *actions], results, strict=True)
        )
        played.append(Trajectory(task, begin, steps, results[-1].score))
        if len(played) == paths:
            break
    name = "WebShop (1,000 products)"
    ours = measure(
        f"{name}, ours", env.start, env.step, played, lambda: resident_mb() - before, 0, env
    )
    goals = [shop.goals[path.task.variation] for path in played]
    request = {
        "goals": [_as_the_original(goal) for goal in goals],
        "prices": {product.asin: product.price for product in shop.products},
        "actions": [[step.action for step in path.steps] for path in played],
        "fork_depths": DEPTHS,
        "forked": 5,
    }
    answer = _ask_stock_webshop(request, stock, python)
    pairs = [
        (_words(one), _words(other))
        for path, theirs in zip(played, answer["pages"], strict=True)
        for one, other in zip(
            [path.start.observation, *(step.observation for step in path.steps)][:-1],
            theirs[:-1],  # the last one tells what was bought
            strict=True,
        )
    ]
    same_pages = sum(one == other for one, other in pairs)
    rewards = zip(played, answer["rewards"], strict=True)
    close = [abs(path.score / 100 - theirs) < 1e-9 for path, theirs in rewards]
    print(
        f"{name}: {same_pages} of {len(pairs)} pages and {sum(close)} of {len(close)} rewards are "
        f"the original's; it starts in {answer['start_s']:.1f} s"
    )
    for one, other in [pair for pair in pairs if pair[0] != pair[1]][:3]:
        print(f"  ours:     {one}\n  original: {other}")
    forks = {depth: statistics.median(answer["fork_ms"][str(depth)]) for depth in DEPTHS}
    reset, step = statistics.median(answer["reset_ms"]), statistics.median(answer["step_ms"])
    return [ours, Row(f"{name}, stock", reset, step, forks, answer["memory_mb"])]


def _as_the_original(goal) -> dict:
    """A goal of ours as the original keeps it."""
    return {
        "asin": goal.asin,
        "category": goal.category,
        "query": goal.query,
        "name": goal.title,
        "product_category": goal.levels,
        "instruction_text": goal.instruction,
        "attributes": list(goal.attributes),
        "price_upper": goal.price_limit,
        "goal_options": dict(goal.options),
        "weight": 1,
    }


def _words(page: str) -> str:
    """A page with its white space evened out: the original keeps what stands in the products' own
    texts, empty lines of its templates included."""
    strings = (" ".join(text.split()) for text in page.split("[SEP]"))
    return " [SEP] ".join(text for text in strings if text)


def _ask_stock_webshop(request: dict, stock: pathlib.Path, python: str) -> dict:
    """What stock_webshop.py answers. Raises SystemExit with the end of what it printed."""
    script = pathlib.Path(__file__).with_name("stock_webshop.py")
    done = subprocess.run(
        [python, str(script)], input=json.dumps(request), cwd=stock, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"stock WebShop in {stock} does not run:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def alfworld(options: argparse.Namespace) -> list[Row]:
    """On embedded games, or where those cannot be made the official ones."""
    from spark_jax.envs.alfworld import translations
    from spark_jax.envs.alfworld.environment import AlfWorldEnvironment

    games = _alfworld_games(options.paths)
    played = []
    for number, game in enumerate(games):
        steps = [ExpertStep(action, "", "", False) for action in game.walkthrough]
        played.append(
            Trajectory(Task("alfworld", game.type, number), Start(game.goal, ""), tuple(steps), 100)
        )
    ours = AlfWorldEnvironment(lambda task: games[task.variation])
    with tempfile.TemporaryDirectory() as folder:
        # What the engine plays of a game is made when it is first started, and kept.
        translations.folder = lambda: pathlib.Path(folder)
        rows = [
            measure(name, ours.start, ours.step, played, lambda: resident_mb(ours.pid), long)
            for name, long in (
                ("ALFWorld, ours, new games", 0),
                ("ALFWorld, ours", options.episodes),
            )
        ]
    ours.close()
    return [*rows, _stock_alfworld(games[:20], played[:20])]  # seconds each


def _alfworld_games(count: int) -> list:
    try:
        from spark_jax.envs.alfworld.generate import games

        found = games("train")
    except ImportError:
        from spark_jax.envs.alfworld.official import find_game, split_tasks

        tasks = split_tasks("default", "all_types", "", "train")
        found = [find_game("", task) for task in tasks[:: max(1, len(tasks) // count)]]
    return [game for game in found if game.walkthrough][:count]


def _stock_alfworld(games: Sequence, played: Sequence[Trajectory]) -> Row:
    """As alfworld's own environment does it: one object, each game loaded and reset."""
    from spark_jax.envs.alfworld.engine import do_without_jericho

    do_without_jericho()
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH

    infos = textworld.EnvInfos(feedback=True, won=True, admissible_commands=True)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, game in enumerate(games):
            files.append(pathlib.Path(folder, f"{number}.tw-pddl"))
            grammar = pathlib.Path(ALFRED_TWL2_PATH).read_text()
            fields = {
                "pddl_domain": pathlib.Path(ALFRED_PDDL_PATH).read_text(),
                "grammar": grammar.replace("UNKNOWN GOAL.", game.goal),
                "pddl_problem": game.problem,
            }
            files[-1].write_text(json.dumps(fields))
        before = resident_mb()
        env = textworld.start(str(files[0]), infos, wrappers=[AlfredDemangler(shuffle=False)])

        def start(task: Task) -> None:
            env.load(str(files[task.variation]))
            env.reset()

        row = measure("ALFWorld, stock", start, env.step, played, lambda: resident_mb() - before)
        env.close()
    return row


WORLDS = {"scienceworld": scienceworld, "webshop": webshop, "alfworld": alfworld}


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
    parser.add_argument("--episodes", type=int, default=0, help="more of ours, for their memory")
    parser.add_argument("--webshop-stock", type=pathlib.Path, help="checkout of the original")
    parser.add_argument("--webshop-python", default="python3", help="Python of its packages")
    options = parser.parse_args()
    rows = []
    for name in options.worlds.split(","):
        rows += WORLDS[name](options)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n\n{table(rows)}")
    for row in rows:
        for played, megabytes in row.later_mb.items():
            print(f"{row.name}: {megabytes:.1f} MB after {played} episodes")
    if options.out:
        options.out.write_text(json.dumps([row._asdict() for row in rows], indent=1))


if __name__ == "__main__":
    main()
