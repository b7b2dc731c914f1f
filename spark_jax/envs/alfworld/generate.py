"""The embedded games: households of our own rooms in the logic that the package `alfworld` ships.

A game is text alone, so making them needs no engine. Splits mean what the official ones mean:

    train   20 layouts, most pairs of a thing and the place it goes to
    L0      the layouts and pairs of train games, other households ("seen")
    L1      9 other layouts and other pairs ("unseen"); L2 is its part of held-out types
"""

from __future__ import annotations

import functools
import random
from typing import NamedTuple

from spark_jax.envs.alfworld.games import TASK_TYPES, Game
from spark_jax.envs.alfworld.layouts import (
    CLEANABLE,
    COOLABLE,
    HEATABLE,
    LAMP,
    LAMP_ROOMS,
    LIKELY,
    OPENABLE,
    THINGS,
    Layout,
    layouts,
)
from spark_jax.types import UserError

PER_TYPE = {"train": 800, "L0": 24, "L1": 24}  # games of each task type
# What those of a type ask for: at most so many wishes; train plays each in several households.
_SEEN_WISHES, _UNSEEN_WISHES = 100, 24
_UNSEEN_SHARE = 0.3  # of the pairs, those of L1
_OTHERS = (7, 12)  # things beside those of the goal
# Where a finished thing may go, besides the places it is found in.
_MORE_TARGETS = {
    "SinkBasin": ("Apple", "Bowl", "Cup", "Fork", "Knife", "Mug", "Plate", "Spoon", "Tomato"),
    "Fridge": ("Apple", "Bread", "Egg", "Mug", "Plate", "Potato", "Tomato", "WineBottle"),
    "Microwave": ("Mug", "Cup", "Plate", "Apple", "Bowl"),
    "GarbageCan": ("Apple", "Bread", "Egg", "Potato", "Tomato", "SoapBottle", "SprayBottle"),
    "Safe": ("CD", "CellPhone", "CreditCard", "KeyChain", "Watch"),
    "Drawer": ("Cloth", "Spoon", "Pen", "Watch", "SprayBottle", "ToiletPaper"),
    "Ottoman": ("Box", "CreditCard", "Laptop", "RemoteControl"),
    "ArmChair": ("Box", "CreditCard", "Laptop", "Newspaper"),
    "LaundryHamper": ("Cloth",),
}


class _Kind(NamedTuple):
    """A task type."""

    able: frozenset[str] | None  # things it can be asked of; None: any
    with_: str  # receptacle type that changes the thing; "": none
    verb: str  # what changes it
    state: str  # predicate of the changed thing
    sentences: tuple[str, str]  # those of alfworld's goal library


_KINDS = {
    "pick_and_place_simple": _Kind(
        None, "", "", "", ("put a {thing} in {place}.", "put some {thing} on {place}.")
    ),
    "look_at_obj_in_light": _Kind(
        None, "", "", "",
        ("look at {thing} under the desklamp.", "examine the {thing} with the desklamp."),
    ),
    "pick_clean_then_place_in_recep": _Kind(
        CLEANABLE, "SinkBasin", "clean", "isClean",
        ("put a clean {thing} in {place}.", "clean some {thing} and put it in {place}."),
    ),
    "pick_heat_then_place_in_recep": _Kind(
        HEATABLE, "Microwave", "heat", "isHot",
        ("put a hot {thing} in {place}.", "heat some {thing} and put it in {place}."),
    ),
    "pick_cool_then_place_in_recep": _Kind(
        COOLABLE, "Fridge", "cool", "isCool",
        ("put a cool {thing} in {place}.", "cool some {thing} and put it in {place}."),
    ),
    "pick_two_obj_and_place": _Kind(
        None, "", "", "",
        ("put two {thing} in {place}.", "find two {thing} and put them in {place}."),
    ),
}  # fmt: skip


class _Wish(NamedTuple):
    """What a game asks for, and where."""

    layout: Layout
    thing: str
    place: str  # receptacle type, or LAMP


@functools.cache
def games(split: str) -> tuple[Game, ...]:
    """The games of "train", "L0" or "L1", always the same ones, task type by task type."""
    if split not in PER_TYPE:
        raise UserError(f"There are no embedded games of split {split!r}: use train, L0 or L1.")
    out = []
    for task_type in TASK_TYPES:
        unseen = split == "L1"  # L0 asks for what train asks for
        wishes = _wishes(task_type, unseen)[: _UNSEEN_WISHES if unseen else _SEEN_WISHES]
        for i in range(PER_TYPE[split]):
            name = f"{split}-{task_type}-{i}"
            out.append(_game(name, task_type, wishes[i % len(wishes)]))
    return tuple(out)


def can_hold(place: str, thing: str) -> bool:
    """Whether a thing can be put there."""
    return place in LIKELY[thing] or thing in _MORE_TARGETS.get(place, ())


def _wishes(task_type: str, unseen: bool) -> list[_Wish]:
    """All that can be asked for in these layouts, in a mixed order."""
    kind = _KINDS[task_type]
    held_out = _unseen_pairs()
    out = []
    for layout in layouts(unseen):
        if kind.with_ and kind.with_ not in layout.counts:
            continue
        for thing in THINGS[layout.kind]:
            if kind.able is not None and thing not in kind.able:
                continue
            if task_type == "look_at_obj_in_light":
                if layout.kind not in LAMP_ROOMS or thing in ("Plate", "Bowl", "Mug"):
                    continue
                targets = [LAMP]
            else:
                targets = [p for p in layout.counts if can_hold(p, thing) and p != kind.with_]
            out += [
                _Wish(layout, thing, target)
                for target in targets
                if ((thing, target) in held_out) == unseen
                and any(place != target for place in _places(layout, thing))
            ]
    random.Random(f"wishes {task_type} {unseen}").shuffle(out)
    return out


@functools.cache
def _unseen_pairs() -> frozenset[tuple[str, str]]:
    """Pairs of a thing and its place that no train game asks for: the same for all task types."""
    rng = random.Random("unseen pairs")
    places = sorted({place for layout in layouts(False) for place in layout.counts})
    carried = [(thing, p) for thing in sorted(LIKELY) for p in places if can_hold(p, thing)]
    lit = [(thing, LAMP) for thing in sorted({t for kind in LAMP_ROOMS for t in THINGS[kind]})]
    drawn = [rng.sample(pairs, round(_UNSEEN_SHARE * len(pairs))) for pairs in (carried, lit)]
    return frozenset(pair for pairs in drawn for pair in pairs)


def _places(layout: Layout, thing: str) -> list[str]:
    """Receptacle types of a room in which a thing may be found, likely ones first."""
    return [place for place in LIKELY[thing] if place in layout.counts]


# ---- one game


def _game(name: str, task_type: str, wish: _Wish) -> Game:
    rng = random.Random(f"game {name}")
    layout, kind = wish.layout, _KINDS[task_type]
    placed = _furnish(rng, task_type, wish)  # thing type -> receptacles, thing i+1 in the i-th
    walk = _walkthrough(task_type, wish, kind, placed)
    goal = rng.choice(kind.sentences).format(thing=wish.thing.lower(), place=wish.place.lower())
    problem = _problem(layout, placed, _condition(task_type, wish, kind))
    return Game(name, task_type, goal, problem, tuple(walk))


def _furnish(rng: random.Random, task_type: str, wish: _Wish) -> dict[str, list[tuple[str, int]]]:
    """Where every thing is, as (receptacle type, number). Nothing of the wished kind is where it
    has to go."""
    layout = wish.layout
    placed: dict[str, list[tuple[str, int]]] = {}

    def place(thing: str, avoid: str = "") -> None:
        places = [p for p in _places(layout, thing) if p != avoid]
        weights = [1 / (1 + i) for i in range(len(places))]
        chosen = rng.choices(places, weights)[0]
        placed.setdefault(thing, []).append((chosen, rng.randint(1, layout.counts[chosen])))

    for _ in range(rng.choice((2, 2, 3) if task_type == "pick_two_obj_and_place" else (1, 1, 2))):
        place(wish.thing, wish.place)
    others = [t for t in THINGS[layout.kind] if t != wish.thing and _places(layout, t)]
    for _ in range(rng.randint(*_OTHERS)):
        place(rng.choice(others))
    if layout.kind in LAMP_ROOMS:
        place(LAMP)
    return placed


def _walkthrough(
    task_type: str, wish: _Wish, kind: _Kind, placed: dict[str, list[tuple[str, int]]]
) -> list[str]:
    thing = wish.thing.lower()
    out: list[str] = []
    opened = set()

    def go(place: tuple[str, int], inside: bool) -> str:
        name = f"{place[0].lower()} {place[1]}"
        if not (out and out[-1].endswith(f" {name}")):
            out.append(f"go to {name}")
        if inside and place[0] in OPENABLE and place not in opened:
            out.append(f"open {name}")
            opened.add(place)
        return name

    for i in range(2 if task_type == "pick_two_obj_and_place" else 1):
        source = go(placed[wish.thing][i], True)
        out.append(f"take {thing} {i + 1} from {source}")
        if kind.with_:
            tool = go((kind.with_, 1), False)
            out.append(f"{kind.verb} {thing} {i + 1} with {tool}")
        if wish.place == LAMP:
            lamp = placed[LAMP][0]
            if lamp != placed[wish.thing][i]:
                go(lamp, True)
            out.append("use desklamp 1")
        else:
            target = go((wish.place, 1), True)
            out.append(f"move {thing} {i + 1} to {target}")
    return out


# ---- PDDL


def _id(kind: str, number: int, count: int) -> str:
    """The identifier of number `number` of `count`. The engine numbers the things of a kind from
    the last identifier in order of the alphabet, and takes basins apart from their owners."""
    owner = kind.removesuffix("Basin")
    return f"{owner}_bar_{count - number:02d}" + (f"_bar_{kind}" if owner != kind else "")


def _problem(layout: Layout, placed: dict[str, list[tuple[str, int]]], condition: str) -> str:
    receptacles = {
        (kind, i): _id(kind, i, count)
        for kind, count in layout.counts.items()
        for i in range(1, count + 1)
    }
    location = {place: f"loc_bar_{i:02d}" for i, place in enumerate(receptacles, 1)}
    facts = ["(atLocation agent1 loc_bar_00)"]
    objects = ["agent1 - agent", *(f"loc_bar_{i:02d} - location" for i in range(len(location) + 1))]
    objects += [f"{thing}Type - otype" for thing in placed]
    objects += [f"{kind}Type - rtype" for kind in layout.counts]
    for place, name in receptacles.items():
        objects.append(f"{name} - receptacle")
        facts.append(f"(receptacleType {name} {place[0]}Type)")
        facts.append(f"(receptacleAtLocation {name} {location[place]})")
        if place[0] in OPENABLE:
            facts.append(f"(openable {name})")
    for thing, places in placed.items():
        abilities = ["toggleable"] if thing == LAMP else ["pickupable"]
        abilities += ["cleanable"] * (thing in CLEANABLE) + ["heatable"] * (thing in HEATABLE)
        abilities += ["coolable"] * (thing in COOLABLE)
        for i, place in enumerate(places, 1):
            name = _id(thing, i, len(places))
            objects.append(f"{name} - object")
            facts.append(f"(objectType {name} {thing}Type)")
            facts.append(f"(objectAtLocation {name} {location[place]})")
            facts.append(f"(inReceptacle {name} {receptacles[place]})")
            facts += [f"({ability} {name})" for ability in abilities]
        facts += [
            f"(canContain {kind}Type {thing}Type)"
            for kind in layout.counts
            if can_hold(kind, thing)
        ]
    return (
        f"(define (problem {layout.name})\n(:domain alfred)\n(:objects\n"
        + "\n".join(objects)
        + "\n)\n(:init\n"
        + "\n".join(facts)
        + f"\n)\n(:goal {condition})\n)\n"
    )


def _condition(task_type: str, wish: _Wish, kind: _Kind) -> str:
    """The goal in PDDL, as alfworld's goal library has it."""
    thing, place = f"{wish.thing}Type", f"{wish.place}Type"
    if task_type == "look_at_obj_in_light":
        return (
            f"(and (exists (?ot - object ?r - receptacle ?a - agent ?l - location) "
            f"(and (objectType ?ot {place}) (toggleable ?ot) (isToggled ?ot) "
            f"(receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r))) "
            f"(exists (?o - object ?a - agent) (and (objectType ?o {thing}) (holds ?a ?o))))"
        )
    there = f"(receptacleType ?r {place})"
    if task_type == "pick_two_obj_and_place":
        one = f"(objectType ?o1 {thing}) {there} (inReceptacle ?o1 ?r)"
        two = f"(not (= ?o1 ?o2)) (objectType ?o2 {thing}) {there} (inReceptacle ?o2 ?r)"
        inner = f"(exists (?o1 - object) (and {one} (exists (?o2 - object) (and {two}))))"
    else:
        state = f" ({kind.state} ?o)" if kind.state else ""
        what = f"(objectType ?o {thing}) {there} (inReceptacle ?o ?r){state}"
        inner = f"(exists (?o - object) (and {what}))"
    return f"(and (exists (?r - receptacle) {inner}))"
