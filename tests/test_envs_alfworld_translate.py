"""Problems grounded here against the planner's translator: the same actions and facts, the same
games. With SPARK_ALFWORLD_GAMES=<packed official games> some of those as well (24, or
SPARK_ALFWORLD_TRANSLATED)."""

import json
import lzma
import os
import pathlib
import random

import pytest
from alfworld_game import GAMES, WASHED, needs_engine, needs_games, small_game

from spark_jax.envs.alfworld import environment, translate
from spark_jax.envs.alfworld.environment import AlfWorldEnvironment
from spark_jax.envs.alfworld.games import TASK_TYPES
from spark_jax.envs.alfworld.generate import PER_TYPE, games
from spark_jax.envs.alfworld.goals import ways_to_reach
from spark_jax.envs.alfworld.pddl import (
    Domain,
    NotUnderstood,
    read_domain,
    read_list,
    read_problem,
    typed_names,
)
from spark_jax.types import Task

SMALL = [small_game(kind, shelves=2) for kind in WASHED]
GOAL = "(heatable ?o) (isHot ?o)"
# One of each task type and split.
SOME = [games(split)[i * PER_TYPE[split] + 3] for split in PER_TYPE for i in range(len(TASK_TYPES))]


@pytest.fixture(scope="module")
def domain():
    from alfworld.info import ALFRED_PDDL_PATH

    return pathlib.Path(ALFRED_PDDL_PATH).read_text()


# ---- reading


def test_lists_and_names_are_read():
    assert read_list("(A (b ?C) ; (not this\n () d)") == ["a", ["b", "?c"], [], "d"]
    assert list(typed_names(read_list("(a b - x c - y)"))) == [("a", "x"), ("b", "x"), ("c", "y")]


@pytest.mark.parametrize("text", ["", "a", "(a", "(a))", "(a) b", "(a) (b)"])
def test_what_is_not_one_list_is_refused(text):
    with pytest.raises(NotUnderstood):
        read_list(text)


@pytest.mark.parametrize("words", [["a"], ["a", "-"], ["-", "x"], [["a"]], ["a", "-", "x", "b"]])
def test_names_without_types_are_refused(words):
    with pytest.raises(NotUnderstood):
        list(typed_names(words))


TINY = Domain(("thing", "place"), {"on": ("thing", "place"), "red": ("thing",)}, {})
PROBLEM = "(define (problem p) (:domain d) (:objects a B - thing t - place)\n(:init {}) (:goal {}))"


def test_a_problem_is_read_with_each_fact_once():
    found = read_problem(PROBLEM.format("(on A t) (red b) (on a T)", "(red a)"), TINY)
    assert found.objects == {"a": "thing", "b": "thing", "t": "place"}
    assert found.facts == {"on": [("a", "t")], "red": [("b",)]}
    assert found.goal == ["red", "a"]


@pytest.mark.parametrize(
    "fact", ["(on a)", "(on a b)", "(on a x)", "(blue a)", "(= (cost) 0)", "(not (red a))", "word"]
)
def test_facts_of_other_kinds_are_refused(fact):
    with pytest.raises(NotUnderstood):
        read_problem(PROBLEM.format(fact, "(red a)"), TINY)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(:goal", "(:metric minimize (cost)) (:goal"),
        ("(:domain d)", ""),
        ("- place", "- box"),
        ("t - place", "t - place a - thing"),
        ("t - place", "t:1 - place"),
        ("(:goal (red a))", "(:goal (red a) (red b))"),
        ("define", "explain"),
    ],
)
def test_problems_of_other_forms_are_refused(old, new):
    text = PROBLEM.format("(red a)", "(red a)")
    assert text != text.replace(old, new)
    with pytest.raises(NotUnderstood):
        read_problem(text.replace(old, new), TINY)


# ---- goals


TABLES = {"on": [("a", "t"), ("b", "t"), ("c", "s")], "red": [("a",), ("b",)]}


def ways(text, tables=TABLES):
    return ways_to_reach(read_list(text), tables, TINY.predicates, {"on"})


def test_all_ways_to_reach_a_goal():
    one = "(and (exists (?o - thing) (and (red ?o) (exists (?p - place) (on ?o ?p)))))"
    assert ways(one) == [(("on", ("a", "t")),), (("on", ("b", "t")),)]
    # Each `exists` has a variable of its own, and one choice is found once.
    assert ways("(and (exists (?o - thing) (on ?o s)) (exists (?o - thing) (on ?o t)))") == [
        (("on", ("a", "t")), ("on", ("c", "s"))),
        (("on", ("b", "t")), ("on", ("c", "s"))),
    ]
    two = "(exists (?p - place ?o ?q - thing) (and (not (= ?o ?q)) (on ?o ?p) (on ?q ?p)))"
    assert ways(two) == [(("on", ("a", "t")), ("on", ("b", "t")))]


@pytest.mark.parametrize(
    "goal",
    [
        "(or (on a t) (on b t))",
        "(forall (?o - thing) (on ?o t))",
        "(not (on a t))",
        "(exists (?o - thing) (and (on ?o t) (not (= ?o a))))",
        "(exists (?o - thing) (on a t))",
        "(exists (?o - place) (on ?o t))",
        "(exists (?o) (on ?o t))",
        "(on ?o t)",
        "(on a)",
        "(under a t)",
        "(on b s)",  # never
        "(red a)",  # always
        "(exists (?o - thing) (on (f ?o) t))",
    ],
)
def test_goals_of_other_forms_are_refused(goal):
    with pytest.raises(NotUnderstood):
        ways(goal)


# ---- against the planner's translator


def renamed(sas):
    """The text with atoms for the numbers of variables, and variables in the order of their atoms:
    how they are numbered is the one thing that may differ."""
    lines = sas.split("\n")
    count = int(lines[6])
    end = 7 + 7 * count
    blocks = [lines[i : i + 7] for i in range(7, end, 7)]
    names = [block[4] for block in blocks]
    assert len(set(names)) == count and lines[end + 1] == "begin_state"
    state = lines[end + 2 : end + 2 + count]
    variables = sorted([*block[2:], start] for block, start in zip(blocks, state, strict=True))
    rest = []
    for line in lines[end + 2 + count :]:
        words = line.split(" ")
        if len(words) > 1 and words[0].isdigit():
            for i in {2: (0,), 3: (0,), 4: (1,), 6: (1, 3)}[len(words)]:
                words[i] = names[int(words[i])]
        rest.append(" ".join(words))
    return lines[:6], variables, lines[end], rest


def agree(domain, problem):
    ours = translate._translate_here(translate._known(domain), problem)
    theirs = translate._translate_there(domain, problem)
    assert renamed(ours.sas) == renamed(theirs.sas)
    assert ours.objects == theirs.objects and ours.types == theirs.types
    assert sorted(ours.facts) == sorted(theirs.facts)
    # Of a name given twice textworld takes the last, and its first parameters.
    theirs = {name: list(parameters) for name, parameters in theirs.actions}
    for name, parameters in ours.actions:
        assert theirs.pop(name)[: len(parameters)] == list(parameters)
    assert not theirs


@needs_engine
@pytest.mark.parametrize("game", SOME, ids=lambda game: game.name)
def test_embedded_games(domain, game):
    agree(domain, game.problem)


OTHERWISE = {
    "a thing in two places": "(inReceptacle Mug_bar_1 Fridge_bar_2)",
    "a thing that is somewhere else": "(objectAtLocation Mug_bar_1 loc_start)",
    "hot and cool at the start": "(isHot Mug_bar_1) (isCool Spoon_bar_1)",
    "a lamp": "(toggleable Spoon_bar_1)",
    "a lamp to carry, lit": "(toggleable Mug_bar_1) (isOn Mug_bar_1) (isToggled Mug_bar_1)",
    "knives": "(objectType Knife_bar_1 KnifeType) (sliceable Apple_bar_1) (pickupable Knife_bar_1) "
    "(inReceptacle Knife_bar_1 CounterTop_bar_1) (sliceable Knife_bar_1)",
    "things to slice, near and far": "(objectType Knife_bar_1 KnifeType) "
    "(inReceptacle Knife_bar_1 CounterTop_bar_1) (pickupable Knife_bar_1) (sliceable Apple_bar_1) "
    "(objectAtLocation Apple_bar_1 loc_start) (objectAtLocation Apple_bar_1 loc_far)",
    "a knife out of reach": "(objectType Knife_bar_1 ButterKnifeType) (sliceable Apple_bar_1)",
    "a thing that nothing can hold": "(pickupable Knife_bar_1) (cleanable Knife_bar_1) "
    "(inReceptacle Knife_bar_1 Fridge_bar_2)",
    "what says nothing": "(moveable Mug_bar_1) (examined loc_start) (full Fridge_bar_2)",
}


@needs_engine
@pytest.mark.parametrize("facts", OTHERWISE.values(), ids=OTHERWISE)
@pytest.mark.parametrize("game", SMALL[1:3], ids=lambda game: game.type)
def test_households_of_other_kinds(domain, game, facts):
    knife = "Knife_bar_1 - object\nKnifeType - otype\nButterKnifeType - otype"
    problem = game.problem.replace("(:objects\n", f"(:objects\nloc_far - location\n{knife}\n")
    agree(domain, problem.replace("(:init\n", f"(:init\n{facts}\n"))


@needs_engine
def test_a_receptacle_that_is_nowhere(domain):
    at = "(receptacleAtLocation Microwave_bar_3 loc_3)"
    inside = "(inReceptacle Mug_bar_1 Microwave_bar_3) (toggleable Spoon_bar_1) "
    assert at in SMALL[2].problem
    inside += "(inReceptacle Spoon_bar_1 Microwave_bar_3)"
    agree(
        domain, SMALL[2].problem.replace(at, inside).replace(GOAL, GOAL.replace("(isHot ?o)", ""))
    )


@needs_engine
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("?r))))))", "?r))))))\n(:metric minimize (total-cost))"),
        ("(:init\n", "(:init\n(= (total-cost) 0)\n"),
        ("(:init\n", "(:init\n(holds agent1 Mug_bar_1) (holdsAny agent1)\n"),
        ("(:init\n", "(:init\n(opened Shelf_bar_4)\n"),
        ("(:init\n", "(:init\n(receptacleAtLocation Shelf_bar_4 loc_start)\n"),
        ("(:init\n", "(:init\n(objectType Mug_bar_1 AppleType)\n"),
        ("agent1 - agent", "agent1 - agent agent2 - agent"),
        ("MugType) (receptacleType ?r", "SpoonType) (receptacleType ?r"),
    ],
)
def test_what_is_not_understood_is_left_to_the_planner(domain, old, new):
    assert old in SMALL[1].problem
    if "SpoonType" in new:  # what nobody can clean
        problem = SMALL[1].problem.replace("(cleanable Spoon_bar_1)", "")
    else:
        problem = SMALL[1].problem
    problem = problem.replace(old, new)
    with pytest.raises(NotUnderstood):
        translate._translate_here(translate._known(domain), problem)
    assert translate.translate(domain, problem) == translate._translate_there(domain, problem)


@needs_engine
def test_a_game_left_to_the_planner_is_played_after_another():
    odd = SMALL[0].problem.replace("(:init\n", "(:init\n(opened Shelf_bar_4)\n")
    chosen = [SMALL[2], SMALL[0]._replace(problem=odd)]
    env = AlfWorldEnvironment(lambda task: chosen[task.variation])
    try:
        for number in (0, 1, 0, 1):
            env.start(Task("alfworld", chosen[number].type, number))
            results = [env.step(action) for action in chosen[number].walkthrough]
            assert [r.success for r in results] == [False] * (len(results) - 1) + [True]
    finally:
        env.close()


@needs_engine
def test_another_domain_is_left_to_the_planner(domain, monkeypatch):
    asked = []
    there = translate._translate_there
    monkeypatch.setattr(translate, "_translate_there", lambda *a: asked.append(a) or there(*a))
    translate.translate(domain, SMALL[0].problem)
    assert not asked
    translate.translate(domain + "\n", SMALL[0].problem)
    assert asked


@needs_engine
def test_a_domain_is_read(domain):
    found = read_domain(domain)
    assert found.types == ("agent", "location", "receptacle", "object", "rtype", "otype")
    assert found.predicates["inreceptacle"] == ("object", "receptacle")
    assert found.actions["openobject"] == (
        ("?a", "agent"),
        ("?l", "location"),
        ("?r", "receptacle"),
    )


@needs_engine
def test_games_are_the_same(domain):
    """Wandering at random, half of the time with what the game is about."""
    chosen = [SOME[i] for i in (1, 8, 10, 17)]
    env = AlfWorldEnvironment(lambda task: chosen[task.variation])
    rng = random.Random(0)
    try:
        for number, game in enumerate(chosen):
            env.start(Task("alfworld", game.type, number))
            said = {}
            walk = []
            for who in ("here", "there"):
                make = {"here": translate.translate, "there": translate._translate_there}[who]
                packed = translate.pack(make(domain, game.problem))
                answer = environment.ask(env._worker, "start", game.problem, packed)
                said[who] = [answer]
                for i in range(40 + len(game.walkthrough)):
                    if who == "here":  # the other follows
                        some = rng.sample(answer.admissible, 1)
                        walk += some if i < 40 else [game.walkthrough[i - 40]]
                    answer = environment.ask(env._worker, "step", walk[i])
                    said[who].append(answer)
            assert said["here"] == said["there"]
            assert len(set(said["here"])) > 20
    finally:
        env.close()


@needs_games
def test_official_games(domain):
    count = int(os.environ.get("SPARK_ALFWORLD_TRANSLATED", 24))
    wanted = {round(i * 4026 / count) for i in range(count)}
    with lzma.open(GAMES, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file):
            if number in wanted:
                agree(domain, json.loads(line)["pddl_problem"])
