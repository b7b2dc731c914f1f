"""The explore tags of an expert's trajectory: a pure function of what was seen.

Each step gets one short sentence of reasoning (reasoning.py). The explore tag marks real
choices by the rule of `annotate`, and its sentence names them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

from spark_jax.envs.scienceworld.reasoning import reasoning, start
from spark_jax.envs.scienceworld.scenes import Goal, Scene, candidates, read_goal, scenes_of
from spark_jax.envs.trajectory import ExpertStep, Trajectory

# Share of explore steps in steps 1-5, 6-10, …, 26-30 (the paper's warm-up data).
DENSITY = (0.23, 0.10, 0.14, 0.08, 0.04, 0.0)


class _Choice(NamedTuple):
    """A step that could be an explore step."""

    index: int
    weight: int  # 3: the next step decides the outcome, 2: a search among several ways, 1: a route
    reasoning: str
    alternatives: tuple[str, ...]


def annotate(trajectory: Trajectory) -> Trajectory:
    """The trajectory with reasoning, explore tags and alternatives.

    Where the tags go: a step is a candidate if it stands at a real choice.
    Weight 3: the last step before the one that decides (the look before a focus among several
    things of the right kind; the mixing before the focus on its product; the focus before the
    wiring; the recipe before the ingredients), since a fork samples the step *after* the explore
    step anew. Weight 2: a search with several ways
    (rooms that may hold the thing, containers to open). Weight 1: the way to a known place, through
    a room with several exits.
    Of each five steps (1-5, 6-10, …) the candidates of greatest weight get the tag, the later one
    first among equals, up to the budget: the paper's density of these five steps times the number
    of steps the path has there, rounded; but at least one where there is a choice of weight 3 (in
    steps 1-5 also of weight 2) and, after step 5, at least four steps. Nothing is tagged after
    step 25, nor on the last step, where no fork can follow.
    """
    scenes = scenes_of(trajectory)
    goal = read_goal(trajectory.start.goal)
    steps = [
        step._replace(reasoning=reasoning(step, scene, goal), explore=False, alternatives=())
        for step, scene in zip(trajectory.steps, scenes, strict=True)
    ]
    for choice in _pick(_choices(trajectory.steps, scenes, goal), len(steps)):
        steps[choice.index] = steps[choice.index]._replace(
            reasoning=choice.reasoning, explore=True, alternatives=choice.alternatives
        )
    return dataclasses.replace(trajectory, steps=tuple(steps))


def _choices(steps: Sequence[ExpertStep], scenes: list[Scene], goal: Goal) -> list[_Choice]:
    out = []
    for i, (step, scene) in enumerate(zip(steps[:-1], scenes[:-1], strict=True)):
        choice = (
            _decision(i, step, steps[i + 1], scenes[i + 1], goal)
            or _search_place(i, step, scene, goal)
            or _search_container(i, step, scene)
        )
        if choice:
            out.append(choice)
    return out


def _decision(
    i: int, step: ExpertStep, after: ExpertStep, scene_after: Scene, goal: Goal
) -> _Choice | None:
    """Weight 3: the next step decides, and there are several ways to do it."""
    verb = after.action.partition(" ")[0]
    if verb == "focus":
        if step.action.startswith("mix "):
            pot = step.action.removeprefix("mix ")
            text = f"All may be in the {pot}; mix it and see if it is {goal.thing}."
            return _Choice(i, 3, text, (f"look in {pot}", f"focus on {pot}"))
        names = candidates(scene_after.room, goal)
        others = tuple(f"focus on {n}" for n in names if f"focus on {n}" != after.action)
        if not others or not (goal.box or goal.compare):
            return None
        if step.action == "look around":
            wanted = "animals" if goal.compare else f"{goal.thing}s"
            return _Choice(i, 3, f"Several {wanted} may be here; look and compare.", others[:4])
        return None
    if verb == "connect" and not step.action.startswith("connect"):
        wires = re.findall(r"\ban? (\w+ wire)", scene_after.text)
        others = tuple(
            f"connect battery anode to {wire} terminal 1"
            for wire in wires
            if wire not in after.action
        )
        if step.action.startswith("focus on "):
            thing = step.action.removeprefix("focus on ")
            text = f"Focus on the {thing}; then try wires from the battery to it."
            return _Choice(i, 3, text, others)
        return None
    if step.action.startswith("read ") and len(scene_after.missing) > 1:
        others = tuple(f"pick up {name}" for name in scene_after.missing)
        others = tuple(name for name in others if name != after.action)
        return _Choice(i, 3, "The recipe may ask for several things here; read it.", others)
    return None


def _search_place(i: int, step: ExpertStep, scene: Scene, goal: Goal) -> _Choice | None:
    """A room to go to among several: weight 2 where it may hold the thing, 1 on a known way."""
    m = re.fullmatch(r"go to (.+)", step.action)
    others = [e for e in scene.exits if m and e not in (m[1], scene.came_from)]
    if not others:
        return None
    target, alternatives = m[1], tuple(f"go to {name}" for name in others)
    ways = f"the {target} or the {_likely(others)}"
    if goal.box and (scene.focused or goal.thing == "non-living thing"):
        if target == goal.box_room:
            return None
        text = f"The {goal.box_room} may be behind {ways}; try the {target}."
        return _Choice(i, 1, text, alternatives)
    if scene.missing:
        text = f"{start(scene.missing[0])} may be in {ways}; try the {target}."
        return _Choice(i, 2, text, alternatives)
    if goal.compare or (goal.place and target != goal.place):
        if target == goal.place:
            return None
        known = goal.place if goal.place == "outside" else f"the {goal.place}"
        return _Choice(i, 1, f"The way to {known} may be {ways}; try the {target}.", alternatives)
    if target == goal.place:
        return None
    text = f"The {goal.thing} may be by {ways}; try the {target}."
    return _Choice(i, 2, text, alternatives)


def _search_container(i: int, step: ExpertStep, scene: Scene) -> _Choice | None:
    """Weight 2: a container to open among several."""
    m = re.fullmatch(r"open (?!door)(.+)", step.action)
    closed = ("cupboard", "fridge", "freezer", "oven", "drawer", "closet", "glass jar")
    if not m:
        return None
    here = scene.room.things if scene.room else ("cupboard", "fridge", "drawer")
    others = [name for name in closed if name in here and name not in m[1]]
    if not others:
        return None
    wanted = scene.missing[0] if scene.missing else "a pot"
    text = f"{start(wanted)} may be in the {m[1]} or the {others[0]}; try the {m[1]}."
    return _Choice(i, 2, text, tuple(f"open {name}" for name in others))


def _pick(choices: list[_Choice], length: int) -> list[_Choice]:
    """The choices that get the tag: see `annotate`."""
    picked = []
    for part, density in enumerate(DENSITY):
        first = 5 * part
        steps = min(5, length - first)
        here = [c for c in choices if first <= c.index < first + 5]
        if steps <= 0 or density == 0 or not here:
            continue
        budget = int(density * steps + 0.5)
        weight = max(c.weight for c in here)
        if weight >= 2 if part == 0 else weight == 3 and steps >= 4:
            budget = max(budget, 1)
        here.sort(key=lambda c: (-c.weight, -c.index))
        picked += here[:budget]
    return picked


def _likely(names: Sequence[str]) -> str:
    """The exit to name besides the one taken: one with more behind it first."""
    order = ("outside", "greenhouse", "kitchen", "hallway")
    return min(names, key=lambda n: (order.index(n) if n in order else len(order), n))
