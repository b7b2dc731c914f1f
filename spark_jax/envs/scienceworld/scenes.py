"""What an expert knows before each of its steps: read off the goal and the texts seen so far."""

from __future__ import annotations

import re
from typing import NamedTuple

from spark_jax.envs.scienceworld.rooms import Room, read_room
from spark_jax.envs.trajectory import Trajectory


class Goal(NamedTuple):
    """What the task text says."""

    thing: str  # what is looked for: "animal", "red light bulb", "salt water", …
    place: str  # where it is said to be, or ""
    box: str = ""  # where it must go, or ""
    box_room: str = ""
    compare: str = ""  # "longest" or "shortest" life span


class Scene(NamedTuple):
    """What is known before a step."""

    room: Room | None  # the room we are in, once described
    text: str  # its description
    place: str  # its name, also before it was described
    exits: tuple[str, ...]  # of the room, known once it was described (now or earlier)
    came_from: str
    held: str  # the last thing taken
    focused: bool
    missing: tuple[str, ...]  # ingredients of the recipe not in the pot yet


def is_animal(thing: str) -> bool:
    """Whether a name shown by the game is that of an animal."""
    return bool(re.search(r" egg$|^(?:baby|juvenile|adult) ", thing))


def is_plant(thing: str) -> bool:
    """Whether a name shown by the game is that of a plant."""
    return bool(re.search(r"\b(?:plant|tree|seed)\b", thing))


def read_goal(text: str) -> Goal:
    """The parts of a task text; of types that are not in the default set only the first words."""
    text = " ".join(text.split()).removeprefix("Your task is to ")
    if m := re.match(r"find a\(n\) (.+?)\. .* to the (.+? box) in the (.+?)\.", text):
        return Goal(m[1], "", m[2], m[3])
    if m := re.match(r"find the animal with the (\w+) life span.*? in the '(.+?)' location", text):
        return Goal("animal", m[2], compare=m[1])
    if m := re.match(r"use chemistry to create the substance '(.+?)'.*? near the (.+?)\.", text):
        return Goal(m[1], m[2])
    if m := re.match(r"turn on the (.+?)\.", text):
        return Goal(m[1], "")
    return Goal(re.split(r"[.,]", text, maxsplit=1)[0], "")


def scenes_of(trajectory: Trajectory) -> list[Scene]:
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
        scenes.append(Scene(room, text, place, exits, came_from, held, focused, missing))
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
            missing = tuple(part for part in missing if not is_ingredient(part, moved))
        if step.action == "activate sink":
            missing = tuple(part for part in missing if part != "water")
    return scenes


def candidates(room: Room | None, goal: Goal) -> list[str]:
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


def is_ingredient(ingredient: str, thing: str) -> bool:
    """Whether a thing ("red jam") is an ingredient of a recipe ("jam")."""
    return set(ingredient.split()) <= set(thing.split())
