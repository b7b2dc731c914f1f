"""One short sentence of reasoning for a plain step of an expert, from what it knows there."""

from __future__ import annotations

import re
from collections.abc import Sequence

from spark_jax.envs.scienceworld.scenes import Goal, Scene, candidates, is_ingredient
from spark_jax.envs.trajectory import ExpertStep

_ELECTRIC = (" bulb", " motor", " buzzer")  # what power-component asks for


def reasoning(step: ExpertStep, scene: Scene, goal: Goal) -> str:
    verb, _, rest = step.action.partition(" ")
    if verb in ("go", "teleport"):
        return _think_go(rest.removeprefix("to "), scene, goal)
    if step.action == "look around":
        if scene.missing:
            return f"{start(scene.missing[0])} is still needed; look for it here."
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


def _think_go(target: str, scene: Scene, goal: Goal) -> str:
    if goal.box and (scene.focused or goal.thing == "non-living thing"):
        if target == goal.box_room:
            return f"The {goal.box} is in the {target}; go there."
        return f"The {goal.box} is in the {goal.box_room}; go by the {target}."
    if scene.missing:
        return f"{start(scene.missing[0])} is still needed; look in the {target}."
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


def _think_focus(thing: str, scene: Scene, goal: Goal) -> str:
    if goal.compare:
        names = [_bare(name) for name in candidates(scene.room, goal)]
        listed = f"Of {_list(names, 'and')} the " if len(names) > 1 else "The "
        return f"{listed}{_bare(thing)} lives {goal.compare}; focus on it."
    if goal.box:
        return f"The {thing} is {_a(goal.thing)}; focus on it."
    return f"The {thing} is here; focus on it."


def _think_take(thing: str, scene: Scene, goal: Goal) -> str:
    if goal.box:
        return f"The {goal.box} is in the {goal.box_room}; take the {_bare(thing)} along."
    if any(is_ingredient(part, thing) for part in scene.missing):
        return f"The recipe needs {re.split(' in ', thing)[0]}; take it."
    if thing == "recipe":
        return "Here is a recipe; take it to read it."
    if "pot" in thing:
        return f"A {_bare(thing)} is good for mixing; take it."
    return f"Take the {_bare(thing)}."


# ---- words


def _bare(thing: str) -> str:
    return thing.removesuffix(" in inventory").removesuffix(" egg").removeprefix("baby ")


def _a(thing: str) -> str:
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def _in(place: str) -> str:
    return "outside" if place == "outside" else f"in the {place}"


def start(text: str) -> str:
    return text[:1].upper() + text[1:]


def _plural(thing: str) -> str:
    return start(thing) + "s"


def _list(names: Sequence[str], word: str) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
