"""Games for tests, by hand and unpacked; the stock engine, in a process of its own."""

import importlib.util
import json
import lzma
import os
import pathlib
import subprocess
import sys

import pytest

from spark_jax.envs.alfworld.games import Game

INSTALLED = all(importlib.util.find_spec(n) for n in ("textworld", "alfworld", "fast_downward"))
needs_engine = pytest.mark.skipif(
    not INSTALLED, reason="textworld is not installed ('.[alfworld]')"
)
GAMES = os.environ.get("SPARK_ALFWORLD_GAMES", "")  # the packed official games
needs_games = pytest.mark.skipif(
    not (INSTALLED and GAMES), reason="SPARK_ALFWORLD_GAMES does not point at the packed games"
)

GOALS = {
    "pick_and_place_simple": "",
    "pick_clean_then_place_in_recep": "(cleanable ?o) (isClean ?o)",
    "pick_heat_then_place_in_recep": "(heatable ?o) (isHot ?o)",
    "pick_cool_then_place_in_recep": "(coolable ?o) (isCool ?o)",
}
WASHED = {
    "pick_and_place_simple": (),
    "pick_clean_then_place_in_recep": ("go to sinkbasin 1", "clean mug 1 with sinkbasin 1"),
    "pick_heat_then_place_in_recep": ("go to microwave 1", "heat mug 1 with microwave 1"),
    "pick_cool_then_place_in_recep": ("go to fridge 1", "cool mug 1 with fridge 1"),
}
RECEPTACLES = ("Cabinet", "CounterTop", "Fridge", "Microwave", "Shelf", "SinkBasin")
OPENABLE = ("Cabinet", "Fridge", "Microwave")


def small_game(task_type="pick_clean_then_place_in_recep", shelves=1, name="small"):
    """A kitchen of six pieces of furniture; the mug in the cabinet belongs on the counter."""
    kinds = [*RECEPTACLES, *["Shelf"] * (shelves - 1)]
    places = [(f"{kind}_bar_{i}" + ("_bar_SinkBasin" if kind == "SinkBasin" else ""), kind)
              for i, kind in enumerate(kinds)]  # fmt: skip
    places = [(name.replace("SinkBasin_bar", "Sink_bar"), kind) for name, kind in places]
    things = [("Mug_bar_1", "Mug", 0), ("Spoon_bar_1", "Spoon", 1), ("Apple_bar_1", "Apple", 4)]
    objects = ["agent1 - agent", "loc_start - location"]
    facts = ["(atLocation agent1 loc_start)"]
    for i, (place, kind) in enumerate(places):
        objects += [f"{place} - receptacle", f"loc_{i} - location"]
        facts += [f"(receptacleType {place} {kind}Type)", f"(receptacleAtLocation {place} loc_{i})"]
        facts += [f"(openable {place})"] if kind in OPENABLE else []
    for thing, kind, i in things:
        objects.append(f"{thing} - object")
        facts += [f"(objectType {thing} {kind}Type)", f"(objectAtLocation {thing} loc_{i})"]
        facts += [f"(inReceptacle {thing} {places[i][0]})", f"(pickupable {thing})"]
        facts += [f"({word} {thing})" for word in ("cleanable", "heatable", "coolable")]
    objects += [f"{kind}Type - otype" for _, kind, _ in things]
    objects += [f"{kind}Type - rtype" for kind in RECEPTACLES]
    facts += [f"(canContain {kind}Type {t}Type)" for kind in RECEPTACLES for _, t, _ in things]
    newline = "\n"
    problem = f"""(define (problem {name})
(:domain alfred)
(:objects
{newline.join(objects)}
)
(:init
{newline.join(facts)}
)
(:goal (and (exists (?r - receptacle) (exists (?o - object) (and
  {GOALS[task_type]} (objectType ?o MugType) (receptacleType ?r CounterTopType)
  (inReceptacle ?o ?r))))))
)
"""
    walkthrough = (
        "go to cabinet 1", "open cabinet 1", "take mug 1 from cabinet 1", *WASHED[task_type],
        "go to countertop 1", "move mug 1 to countertop 1",
    )  # fmt: skip
    return Game(name, task_type, "put a clean mug in countertop.", problem, walkthrough)


def write_official(folder, split, game, number=0, solvable=True, **changes):
    """`game` in the layout of `alfworld-download`; returns the path of its game.tw-pddl."""
    from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH

    grammar = pathlib.Path(ALFRED_TWL2_PATH).read_text()
    fields = {
        "pddl_domain": pathlib.Path(ALFRED_PDDL_PATH).read_text(),
        "grammar": grammar.replace("UNKNOWN GOAL.", game.goal),
        "pddl_problem": game.problem,
        "solvable": solvable,
        "walkthrough": list(game.walkthrough),
    }
    trial = folder / "json_2.1.1" / split / f"{game.type}-Mug-None-{number}" / f"trial_{number}"
    return write_trial(trial, game.type, fields | changes)


def write_trial(trial, task_type, fields):
    trial.mkdir(parents=True)
    (trial / "traj_data.json").write_text(json.dumps({"task_type": task_type}))
    (trial / "initial_state.pddl").write_text(fields["pddl_problem"])
    path = trial / "game.tw-pddl"
    path.write_text(json.dumps(fields))
    return path


def unpack(packed, folder, wanted):
    """Writes packed official games (JSON lines beside their logic) in the official layout; `wanted`
    says whether to take the one of this path. Returns the paths and their walkthroughs."""
    packed = pathlib.Path(packed)
    logic = json.loads(packed.with_name("alfworld_logic.json").read_text())
    out = []
    with lzma.open(packed, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file):
            game = json.loads(line)
            if not wanted(number, game["path"]):
                continue
            fields = {
                "pddl_domain": logic["domain"][game["domain"]],
                "grammar": logic["grammar"][game["grammar"]].replace("@@TASK@@", game["task"]),
                "pddl_problem": game["pddl_problem"],
                "solvable": game["solvable"],
                "walkthrough": game["walkthrough"],
            }
            path = folder / game["path"]
            write_trial(path.parent, path.parts[-3].partition("-")[0], fields)
            out.append((path, game["walkthrough"]))
    return out


STOCK = """
import json, sys, types
answer = sys.argv[1]  # the translator changes the arguments
try:
    import jericho
except ImportError:
    sys.modules["jericho"] = types.SimpleNamespace(
        UnsupportedGameWarning=UserWarning, TruncatedInputActionWarning=UserWarning)
import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
infos = textworld.EnvInfos(feedback=True, won=True, admissible_commands=True)
out = []
for path, actions in json.load(sys.stdin):
    env = textworld.start(path, infos, wrappers=[AlfredDemangler(shuffle=False)])
    state = env.reset()
    said = [(state.feedback, bool(state["won"]), state["admissible_commands"])]
    for action in actions:
        state, _, _ = env.step(action)
        said.append((state.feedback, bool(state["won"]), state["admissible_commands"]))
    out.append(said)
    env.close()
open(answer, "w").write(json.dumps(out))
"""


def stock(games, scratch):
    """(text, won, commands) at the start and after each action, by the engine as it comes;
    `games` are pairs (path of game.tw-pddl, actions)."""
    answer = scratch / "stock.json"
    subprocess.run(
        [sys.executable, "-c", STOCK, str(answer)],
        input=json.dumps([(str(path), list(actions)) for path, actions in games]),
        text=True, check=True, capture_output=True,
    )  # fmt: skip
    return json.loads(answer.read_text())
