"""Reasoning and explore tags for an expert's trajectory: pure functions of what was seen.

Each step gets one short sentence made from the goal, the texts seen so far and the action. The
explore tag marks real choices by the rule of `annotate`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

from spark_jax.envs.rooms import Room, read_room
from spark_jax.types import Start, Task

# Share of explore steps in steps 1-5, 6-10, …, 26-30 (the paper's warm-up data, FACTS).
DENSITY = (0.23, 0.10, 0.14, 0.08, 0.04, 0.0)

_ELECTRIC = (" bulb", " motor", " buzzer")  # what power-component asks for


class ExpertStep(NamedTuple):
    """One step of an expert."""

    action: str
    observation: str
    reasoning: str = ""
    explore: bool = False
    # Other actions worth a try at the choice that an explore step stands at: instead of its own
    # action or, where it is the last step before the choice, instead of the next one.
    alternatives: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """An expert's episode."""

    task: Task
    start: Start
    steps: tuple[ExpertStep, ...]
    score: float


class _Goal(NamedTuple):
    """What the task text says."""

    thing: str  # what is looked for: "animal", "red light bulb", "salt water", …
    place: str  # where it is said to be, or ""
    box: str = ""  # where it must go, or ""
    box_room: str = ""
    compare: str = ""  # "longest" or "shortest" life span


class _Choice(NamedTuple):
    """A step that could be an explore step."""

    index: int
    weight: int  # 3: the next step decides the outcome, 2: a search among several ways, 1: a route
    reasoning: str
    alternatives: tuple[str, ...]


class _Scene(NamedTuple):
    """What is known before a step."""

    room: Room | None  # the room we are in, once described
    text: str  # its description
    place: str  # its name, also before it was described
    exits: tuple[str, ...]  # of the room, known once it was described (now or earlier)
    came_from: str
    held: str  # the last thing taken
    focused: bool
    missing: tuple[str, ...]  # ingredients of the recipe not in the pot yet


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
    scenes = _scenes(trajectory)
    goal = read_goal(trajectory.start.goal)
    steps = [
        step._replace(reasoning=_think(step, scene, goal), explore=False, alternatives=())
        for step, scene in zip(trajectory.steps, scenes, strict=True)
    ]
    for choice in _pick(_choices(trajectory.steps, scenes, goal), len(steps)):
        steps[choice.index] = steps[choice.index]._replace(
            reasoning=choice.reasoning, explore=True, alternatives=choice.alternatives
        )
    return dataclasses.replace(trajectory, steps=tuple(steps))


def explore_density(trajectories: Sequence[Trajectory]) -> list[float]:
    """Share of explore steps in steps 1-5, 6-10, …, 26-30 (0 where there are no steps)."""
    counts = [[0, 0] for _ in DENSITY]
    for trajectory in trajectories:
        for i, step in enumerate(trajectory.steps):
            if i // 5 < len(counts):
                counts[i // 5][0] += step.explore
                counts[i // 5][1] += 1
    return [explores / steps if steps else 0.0 for explores, steps in counts]


def is_animal(thing: str) -> bool:
    """Whether a name shown by the game is that of an animal."""
    return bool(re.search(r" egg$|^(?:baby|juvenile|adult) ", thing))


def is_plant(thing: str) -> bool:
    """Whether a name shown by the game is that of a plant."""
    return bool(re.search(r"\b(?:plant|tree|seed)\b", thing))


def read_goal(text: str) -> _Goal:
    """The parts of a task text; of types that are not in the default set only the first words."""
    text = " ".join(text.split()).removeprefix("Your task is to ")
    if m := re.match(r"find a\(n\) (.+?)\. .* to the (.+? box) in the (.+?)\.", text):
        return _Goal(m[1], "", m[2], m[3])
    if m := re.match(r"find the animal with the (\w+) life span.*? in the '(.+?)' location", text):
        return _Goal("animal", m[2], compare=m[1])
    if m := re.match(r"use chemistry to create the substance '(.+?)'.*? near the (.+?)\.", text):
        return _Goal(m[1], m[2])
    if m := re.match(r"turn on the (.+?)\.", text):
        return _Goal(m[1], "")
    return _Goal(re.split(r"[.,]", text, maxsplit=1)[0], "")


# ---- what is known when


def _scenes(trajectory: Trajectory) -> list[_Scene]:
    text = trajectory.start.observation
    room = read_room(text)
    place = room.name if room else ""
    known_exits = {place: room.exits} if room else {}
    came_from = held = ""
    focused = False
    missing: tuple[str, ...] = ()
    scenes = []
    for step in trajectory.steps:
        exits = known_exits.get(place, ())
        scenes.append(_Scene(room, text, place, exits, came_from, held, focused, missing))
        if m := re.fullmatch(r"(?:go|teleport) to (.+)", step.action):
            came_from, place, room, text = place, m[1], None, ""
        if seen := read_room(step.observation):
            room, place, text = seen, seen.name, step.observation
            known_exits[place] = seen.exits
        if m := re.fullmatch(r"pick up (.+)", step.action):
            held = m[1]
        if step.action.startswith("focus on "):
            focused = True
        if m := re.search(r"you need to mix (.+?)\.", step.observation):
            missing = tuple(part.strip() for part in re.split(r",| and ", m[1]) if part.strip())
        if m := re.fullmatch(r"(?:move|pour) (.+) (?:to|into|in) .+", step.action):
            moved = m[1].removesuffix(" in inventory").removeprefix("cup containing ")
            missing = tuple(part for part in missing if not _same(part, moved))
        if step.action == "activate sink":
            missing = tuple(part for part in missing if part != "water")
    return scenes


def _candidates(room: Room | None, goal: _Goal) -> list[str]:
    """Things of the room that could be what the goal asks for."""
    if room is None:
        return []
    if goal.thing == "animal" or goal.compare:
        return [t for t in room.things if is_animal(t)]
    if goal.thing == "plant":
        return [t for t in room.things if is_plant(t)]
    if goal.thing == "living thing":
        return [t for t in room.things if is_animal(t) or is_plant(t)]
    if goal.thing == "non-living thing":
        return [t for t in room.things if not (is_animal(t) or is_plant(t) or t == goal.box)]
    return [t for t in room.things if t == goal.thing]


# ---- plain steps


def _think(step: ExpertStep, scene: _Scene, goal: _Goal) -> str:
    verb, _, rest = step.action.partition(" ")
    if verb in ("go", "teleport"):
        return _think_go(rest.removeprefix("to "), scene, goal)
    if step.action == "look around":
        if scene.missing:
            return f"{_start(scene.missing[0])} is still needed; look for it here."
        wanted = "animals" if goal.compare else f"the {goal.thing}"
        if not goal.compare and (goal.box or scene.focused):
            wanted = _a(goal.thing)
        elif goal.place and not goal.compare:
            wanted = "the recipe"
        return f"I am in the {scene.place}; look for {wanted}."
    if verb == "focus":
        return _think_focus(rest.removeprefix("on "), scene, goal)
    if verb == "pick":
        return _think_take(rest.removeprefix("up "), scene, goal)
    if verb == "move":
        thing, _, target = rest.rpartition(" to ")
        if target == goal.box:
            return f"The {goal.box} is here; put the {_bare(thing)} in."
        if target == "sink":
            return f"Water is needed; put the {_bare(thing)} under the tap."
        return f"Put the {_bare(thing)} into the {target}."
    if verb == "pour":
        return f"Pour the {_bare(re.split(' into | in ', rest)[0])} in."
    if verb == "read":
        return f"The recipe says how to make {goal.thing}; read it."
    if verb == "open":
        return f"The {_bare(rest)} may hold what I need; open it."
    if verb == "mix":
        return f"All ingredients are in; mix the {rest}."
    if verb == "activate":
        return f"Turn on the {rest} now."
    if verb == "deactivate":
        return f"Done with the {rest}; turn it off."
    if verb == "connect":
        one, _, two = rest.partition(" to ")
        return f"Join {_bare(one)} and {_bare(two)}."
    if verb in ("wait", "wait1"):
        return "Give it a moment to work."
    return f"Next: {step.action}."


def _think_go(target: str, scene: _Scene, goal: _Goal) -> str:
    if goal.box and (scene.focused or goal.thing == "non-living thing"):
        if target == goal.box_room:
            return f"The {goal.box} is in the {target}; go there."
        return f"The {goal.box} is in the {goal.box_room}; go by the {target}."
    if scene.missing:
        return f"{_start(scene.missing[0])} is still needed; look in the {target}."
    if goal.compare:
        if target == goal.place:
            return f"The animals are {_in(target)}; go there."
        return f"The animals are {_in(goal.place)}; the {target} may lead there."
    if goal.box:
        if target == "outside" or (goal.thing != "animal" and target == "greenhouse"):
            return f"{_plural(goal.thing)} may be {_in(target)}; go there."
        return f"{_plural(goal.thing)} may be outside; the {target} may lead there."
    if goal.place:
        if target == goal.place:
            return f"The recipe may be in the {target}; go there."
        return f"The {target} may have a pot or lead to the {goal.place}."
    if goal.thing.endswith(_ELECTRIC):
        if target == "workshop":
            return f"The {goal.thing} may be in the workshop; go there."
        return f"The {goal.thing} may be in the workshop; the {target} may lead there."
    return f"Go on by the {target}."


def _think_focus(thing: str, scene: _Scene, goal: _Goal) -> str:
    if goal.compare:
        names = [_bare(name) for name in _candidates(scene.room, goal)]
        listed = f"Of {_list(names, 'and')} the " if len(names) > 1 else "The "
        return f"{listed}{_bare(thing)} lives {goal.compare}; focus on it."
    if goal.box:
        return f"The {thing} is {_a(goal.thing)}; focus on it."
    return f"The {thing} is here; focus on it."


def _think_take(thing: str, scene: _Scene, goal: _Goal) -> str:
    if goal.box:
        return f"The {goal.box} is in the {goal.box_room}; take the {_bare(thing)} along."
    if any(_same(part, thing) for part in scene.missing):
        return f"The recipe needs {re.split(' in ', thing)[0]}; take it."
    if thing == "recipe":
        return "Here is a recipe; take it to read it."
    if "pot" in thing:
        return f"A {_bare(thing)} is good for mixing; take it."
    return f"Take the {_bare(thing)}."


# ---- choices


def _choices(steps: Sequence[ExpertStep], scenes: list[_Scene], goal: _Goal) -> list[_Choice]:
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
    i: int, step: ExpertStep, after: ExpertStep, scene_after: _Scene, goal: _Goal
) -> _Choice | None:
    """Weight 3: the next step decides, and there are several ways to do it."""
    verb = after.action.partition(" ")[0]
    if verb == "focus":
        if step.action.startswith("mix "):
            pot = step.action.removeprefix("mix ")
            text = f"All may be in the {pot}; mix it and see if it is {goal.thing}."
            return _Choice(i, 3, text, (f"look in {pot}", f"focus on {pot}"))
        names = _candidates(scene_after.room, goal)
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


def _search_place(i: int, step: ExpertStep, scene: _Scene, goal: _Goal) -> _Choice | None:
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
        text = f"{_start(scene.missing[0])} may be in {ways}; try the {target}."
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


def _search_container(i: int, step: ExpertStep, scene: _Scene) -> _Choice | None:
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
    text = f"{_start(wanted)} may be in the {m[1]} or the {others[0]}; try the {m[1]}."
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


# ---- words


def _same(ingredient: str, thing: str) -> bool:
    """Whether a thing ("red jam") is an ingredient of a recipe ("jam")."""
    return set(ingredient.split()) <= set(thing.split())


def _likely(names: Sequence[str]) -> str:
    """The exit to name besides the one taken: one with more behind it first."""
    order = ("outside", "greenhouse", "kitchen", "hallway")
    return min(names, key=lambda n: (order.index(n) if n in order else len(order), n))


def _bare(thing: str) -> str:
    return thing.removesuffix(" in inventory").removesuffix(" egg").removeprefix("baby ")


def _a(thing: str) -> str:
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def _in(place: str) -> str:
    return "outside" if place == "outside" else f"in the {place}"


def _start(text: str) -> str:
    return text[:1].upper() + text[1:]


def _plural(thing: str) -> str:
    return _start(thing) + "s"


def _list(names: Sequence[str], word: str) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
