"""The embedded games of ALFWorld, as text: what they hold, how the splits differ. No engine."""

import collections
import hashlib
import re
import subprocess
import sys

import pytest

from spark_jax.envs.alfworld import official, tasks
from spark_jax.envs.alfworld.expert import read_goal
from spark_jax.envs.alfworld.games import HELD_OUT, TASK_TYPES
from spark_jax.envs.alfworld.generate import PER_TYPE, can_hold, games
from spark_jax.envs.alfworld.layouts import LAMP, LIKELY, THINGS, layouts
from spark_jax.types import Start, Task, UserError

SPLITS = ("train", "L0", "L1")
EVERY = {split: games(split) for split in SPLITS}


def household(game):
    """The problem without the game's goal: (layout, facts)."""
    name = re.search(r"\(problem (\w+)\)", game.problem)[1]
    return name, game.problem.partition("(:goal")[0]


def pair(game):
    """(thing, place) of the goal in PDDL."""
    goal = game.problem.partition("(:goal")[2]
    thing = re.findall(r"objectType \?o\d? (\w+)Type", goal)
    place = re.findall(r"receptacleType \?r (\w+)Type", goal) or [LAMP]
    assert len(set(thing)) == len(set(place)) == 1
    return thing[0], place[0]


def test_there_are_enough_games_of_every_type():
    for split, found in EVERY.items():
        counts = collections.Counter(game.type for game in found)
        assert counts == dict.fromkeys(TASK_TYPES, PER_TYPE[split])
    assert [len(EVERY[split]) for split in SPLITS] == [4800, 144, 144]


def test_no_game_comes_twice():
    problems = [game.problem for split in SPLITS for game in EVERY[split]]
    assert len(set(problems)) == len(problems)
    names = [game.name for split in SPLITS for game in EVERY[split]]
    assert len(set(names)) == len(names)


def test_seen_games_ask_for_what_train_games_ask_for_in_the_same_rooms():
    asked = {(g.type, household(g)[0], pair(g)) for g in EVERY["train"]}
    assert all((g.type, household(g)[0], pair(g)) in asked for g in EVERY["L0"])


def test_unseen_games_have_other_rooms_and_other_pairs():
    rooms = {household(g)[0] for g in EVERY["train"]}
    pairs = {pair(g) for g in EVERY["train"]}
    for game in EVERY["L1"]:
        assert household(game)[0] not in rooms
        assert pair(game) not in pairs
    furniture = [tuple(sorted(room.counts.items())) for room in layouts(False) + layouts(True)]
    assert len(set(furniture)) == len(furniture)
    # ... but no thing and no place that a train game never speaks of
    assert {pair(g)[0] for g in EVERY["L1"]} <= {pair(g)[0] for g in EVERY["train"]}
    train_text = "".join(g.problem for g in EVERY["train"])
    for room in layouts(True):
        assert all(f" {place}Type" in train_text for place in room.counts)


def test_sentence_condition_and_walkthrough_agree():
    for game in (game for split in SPLITS for game in EVERY[split]):
        wish = read_goal(game.goal)
        thing, place = pair(game)
        assert (wish.thing, wish.place) == (thing.lower(), place.lower())
        assert wish.lit == (game.type == "look_at_obj_in_light")
        assert wish.count == (2 if game.type == "pick_two_obj_and_place" else 1)
        states = re.findall(r"\((isClean|isHot|isCool) \?o\)", game.problem)
        expected = {"clean": ["isClean"], "heat": ["isHot"], "cool": ["isCool"], "": []}
        assert states == expected[wish.change]
        last = game.walkthrough[-1]
        if wish.lit:
            assert last == "use desklamp 1"
        else:
            assert re.fullmatch(rf"move {wish.thing} \d to {wish.place} 1", last)
        if not wish.lit:  # nothing of the kind lies there at the start
            name = place.removesuffix("Basin")
            assert not re.search(rf"\(inReceptacle {thing}_bar_\d+ {name}_bar", game.problem)
        assert "Sliced" not in game.problem


def test_goals_are_those_of_the_goal_library():
    assert read_goal("put a clean mug in desk.") == ("mug", "desk", "clean", 1, False)
    assert read_goal("heat some egg and put it in fridge.") == ("egg", "fridge", "heat", 1, False)
    assert read_goal("put a cool pan in countertop.") == ("pan", "countertop", "cool", 1, False)
    assert read_goal("find two pen and put them in bed.") == ("pen", "bed", "", 2, False)
    assert read_goal("put two pen in bed.") == ("pen", "bed", "", 2, False)
    assert read_goal("put some book on sofa.") == ("book", "sofa", "", 1, False)
    assert read_goal("examine the cd with the desklamp.") == ("cd", "desklamp", "", 1, True)
    assert read_goal("look at cd under the desklamp.") == ("cd", "desklamp", "", 1, True)
    with pytest.raises(UserError, match="sweep the floor"):
        read_goal("sweep the floor.")


def test_things_are_where_they_may_be():
    for kind, things in THINGS.items():
        rooms = [room for room in layouts(False) + layouts(True) if room.kind == kind]
        for thing in things:
            assert any(place in room.counts for room in rooms for place in LIKELY[thing]), thing
    for game in EVERY["train"] + EVERY["L1"]:
        kinds = dict(re.findall(r"\((?:object|receptacle)Type (\w+) (\w+)Type\)", game.problem))
        at = dict(re.findall(r"\((?:object|receptacle)AtLocation (\w+) (\w+)\)", game.problem))
        inside = re.findall(r"\(inReceptacle (\w+) (\w+)\)", game.problem)
        assert len(inside) >= 8
        for thing, place in inside:
            assert can_hold(kinds[place], kinds[thing]) and at[thing] == at[place], (thing, place)
    assert can_hold("Drawer", "Pen") and not can_hold("Bed", "Egg")


def test_generation_does_not_depend_on_what_was_made_before():
    code = (
        "import random; random.seed(7)\n"
        "from spark_jax.envs.alfworld.generate import games\n"
        "import hashlib; print(hashlib.sha256(repr(games('L1')).encode()).hexdigest())\n"
        "import sys; print(any(m.startswith(('textworld', 'alfworld')) for m in sys.modules))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    digest, loaded = out.stdout.split()
    assert digest == hashlib.sha256(repr(EVERY["L1"]).encode()).hexdigest()
    assert loaded == "False"


# ---- tasks


def test_splits_and_protocols():
    def types(split, protocol):
        return {t.type for t in tasks.split_tasks("default", protocol, "", split)}

    for split in SPLITS:
        assert types(split, "all_types") == set(TASK_TYPES)
        assert types(split, "held_out") == set(TASK_TYPES) - set(HELD_OUT)
    assert types("L2", "held_out") == set(HELD_OUT)
    unseen = tasks.split_tasks("default", "held_out", "", "L2")
    assert len(unseen) == 48
    rooms = {household(game)[0] for game in EVERY["train"]}
    assert not rooms & {household(tasks.find_game("", task))[0] for task in unseen}
    some = tasks.split_tasks("look_at_obj_in_light", "all_types", "", "L0")
    assert len(some) == 24 and {t.split for t in some} == {"L0"}


def test_a_task_finds_its_game():
    for split in (*SPLITS, "L2"):
        protocol = "held_out" if split == "L2" else "all_types"
        for task in tasks.split_tasks("default", protocol, "", split)[::29]:
            game = tasks.find_game("", task)
            assert game.type == task.type
            number = task.variation - official.FIRST[split]
            assert game is EVERY["L1" if split == "L2" else split][number]


def test_a_number_is_one_game_in_all_splits():
    found = [t for split in SPLITS for t in tasks.split_tasks("default", "all_types", "", split)]
    assert len({(task.type, task.variation) for task in found}) == len(found)


def test_mistakes_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no embedded game 3 of type pick_two"):
        tasks.find_game("", Task("alfworld", "pick_two_obj_and_place", 3))
    with pytest.raises(UserError, match="no embedded game 4800"):
        tasks.find_game("", Task("alfworld", TASK_TYPES[0], 4800))
    with pytest.raises(UserError, match="use train, L0 or L1"):
        games("L3")
    with pytest.raises(UserError, match="no L2"):
        tasks.split_tasks("default", "all_types", "", "L2")
    with pytest.raises(UserError, match="'sweep'"):
        tasks.split_tasks("sweep", "all_types", "", "L1")
    # official games are never replaced by embedded ones
    for data_dir in (str(tmp_path), "official"):
        monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
        with pytest.raises(UserError, match="alfworld-download"):
            tasks.split_tasks("default", "all_types", data_dir, "train")
        with pytest.raises(UserError, match="alfworld-download"):
            tasks.source(data_dir)
    assert "embedded" in tasks.source("")


def test_prompts():
    room = "You are in the middle of a room. Looking quickly around you, you see a bed 1."
    start = Start("put a pen in bed.", room)
    assert tasks.system_prompt("short") == ""
    assert tasks.first_message(start, "short") == "put a pen in bed.\nyou see a bed 1."
    assert tasks.first_message(start, "full") == f"Your task is to: put a pen in bed.\n\n{room}"
    full = tasks.system_prompt("full")
    for word in ("go to", "take", "move", "clean", "heat", "cool", "use", "<explore>"):
        assert word in full
