"""What can happen in a household: ALFWorld's actions with names put in for their parameters.

Written for the one domain that alfworld ships, action by action, which takes milliseconds where the
planner's translator, made for any domain, takes 0.1-2 s. It finds what that finds: all that could
become true if nothing true ever became false, and every action that could then be played.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from spark_jax.envs.alfworld.goals import Arguments, Atom, ways_to_reach
from spark_jax.envs.alfworld.pddl import Domain, NotUnderstood, Problem

# SHA-256 of the domain's text (alfred.pddl of alfworld 0.4).
DOMAIN = "f1473041ed01da514de1f87adfd7ef0804862361f83ccf63c75e43633b0eb280"
CHANGING = (
    *("atlocation", "checked", "holds", "holdsany", "inreceptacle", "isclean", "iscool", "ishot"),
    *("ison", "issliced", "istoggled", "objectatlocation", "opened"),
)  # predicates in effects of actions
_KNIVES = ("knifetype", "butterknifetype")
_NEVER_AT_FIRST = ("checked", "holds", "holdsany", "opened")  # not true when a game begins
_ONE_EACH = ("objecttype", "receptacleatlocation", "receptacletype")
# What a type of receptacle does to things of an ability: action, new state, state that it ends.
_TREATMENTS = (
    ("cleanobject", "sinkbasintype", "cleanable", "isclean", ""),
    ("coolobject", "fridgetype", "coolable", "iscool", "ishot"),
    ("heatobject", "microwavetype", "heatable", "ishot", "iscool"),
)

_Groups = dict[str, dict[str, None]]  # sets that keep their order


class Effect(NamedTuple):
    """One change that an action makes."""

    atom: Atom
    after: bool
    before: bool | None = None  # what the atom must be for the action to be possible; None: either
    only_if: bool | None = None  # what it must be for the change to happen; None: either


class Operator(NamedTuple):
    """An action that could be played."""

    name: str  # and its arguments
    needs: tuple[Atom, ...]  # true before and after
    effects: tuple[Effect, ...]  # by the name of the atom


class Household(NamedTuple):
    """All that can be true and happen."""

    atoms: dict[Atom, bool]  # all that can change or be changed, and whether it is true at first
    operators: list[Operator]  # by name
    wins: list[tuple[Atom, ...]]  # won is the game when all atoms of one of them are true


def ground(problem: Problem, domain: Domain) -> Household:
    """Raises NotUnderstood for a problem that is not like alfworld's."""
    operators = sorted(_operators(_reach(problem)), key=lambda operator: operator.name)
    tables = {name: dict.fromkeys(entries) for name, entries in problem.facts.items()}
    atoms = {(name, entry): True for name in CHANGING for entry in tables[name]}
    for operator in operators:
        for effect in operator.effects:
            if effect.after and effect.atom not in atoms:
                atoms[effect.atom] = False
                tables[effect.atom[0]][effect.atom[1]] = None
    wins = ways_to_reach(problem.goal, tables, domain.predicates, CHANGING)
    return Household(atoms, [_possible(operator, atoms) for operator in operators], wins)


def _possible(operator: Operator, atoms: dict[Atom, bool]) -> Operator:
    """Without the ends of what never begins."""
    if all(effect.atom in atoms for effect in operator.effects):
        return operator
    return operator._replace(effects=tuple([e for e in operator.effects if e.atom in atoms]))


# ---- who and what can be where


class _Reach(NamedTuple):
    facts: dict[str, list[Arguments]]
    agent: str
    locations: dict[str, None]  # of the agent
    at: dict[str, str]  # location of a receptacle
    openable: frozenset[str]
    held: dict[str, None]  # things that can be in the hand
    puts: list[tuple[str, str, str, str]]  # thing, receptacle and their types
    inside: _Groups  # receptacles in which a thing can be
    near: _Groups  # locations at which a thing can be


def _reach(problem: Problem) -> _Reach:
    facts = problem.facts
    agents = [name for name, kind in problem.objects.items() if kind == "agent"]
    if len(agents) != 1 or len(facts["atlocation"]) != 1:
        raise NotUnderstood("it has no one agent at one location")
    for name in _NEVER_AT_FIRST:
        if facts[name]:
            raise NotUnderstood(f"{name} at the start")
    for name in _ONE_EACH:  # else two operators have one name
        if len({first for first, _ in facts[name]}) < len(facts[name]):
            raise NotUnderstood(f"{name} twice")
    ((agent, start),) = facts["atlocation"]
    at = dict(facts["receptacleatlocation"])
    # From anywhere the agent can go to every receptacle.
    locations = dict.fromkeys([start, *at.values()])
    pickupable = _all(facts, "pickupable")
    # All receptacles that are somewhere can be opened where that is needed.
    held = dict.fromkeys(o for o, r in facts["inreceptacle"] if r in at and o in pickupable)
    holders = _groups((rt, r) for r, rt in facts["receptacletype"] if r in at)
    takers = _groups((ot, rt) for rt, ot in facts["cancontain"])
    puts = [
        (o, r, ot, rt)
        for o, ot in facts["objecttype"]
        if o in held
        for rt in takers.get(ot, ())
        for r in holders.get(rt, ())
    ]
    inside = _groups([*facts["inreceptacle"], *((o, r) for o, r, _, _ in puts)])
    near = _groups([*facts["objectatlocation"], *((o, at[r]) for o, r, _, _ in puts)])
    openable = _all(facts, "openable")
    return _Reach(facts, agent, locations, at, openable, held, puts, inside, near)


def _groups(pairs: Iterable[tuple[str, str]]) -> _Groups:
    """What goes with each first name."""
    out: _Groups = {}
    for first, second in pairs:
        out.setdefault(first, {})[second] = None
    return out


def _all(facts: dict[str, list[Arguments]], predicate: str) -> frozenset[str]:
    return frozenset([name for (name,) in facts[predicate]])


# ---- the actions of the domain


def _operators(reach: _Reach) -> Iterator[Operator]:
    yield from _looking(reach)
    yield from _going(reach)
    yield from _opening(reach)
    yield from _carrying(reach)
    yield from _treating(reach)


def _looking(reach: _Reach) -> Iterator[Operator]:
    """look, inventory, help, examineReceptacle and examineObject: they note what was seen. Of
    examineObject there is the part for things in the hand; the other asks for things of the type
    `location,` by a slip of the pen, and there are none."""
    a = reach.agent

    def seeing(action: str, what: str, needs: tuple[Atom, ...]) -> Operator:
        return Operator(action, needs, (Effect(("checked", (what,)), True),))

    for action in ("inventory", "help"):
        yield seeing(f"{action} {a}", a, ())
    for place in reach.locations:
        yield seeing(f"look {a} {place}", place, (("atlocation", (a, place)),))
    for r, place in reach.at.items():
        yield seeing(f"examinereceptacle {a} {r}", r, (("atlocation", (a, place)),))
    for o in reach.held:
        yield seeing(f"examineobject {a} {o}", o, (("holds", (a, o)),))


def _going(reach: _Reach) -> Iterator[Operator]:
    a = reach.agent
    for (r, end), start in itertools.product(reach.at.items(), reach.locations):
        if start != end:  # else it changes nothing
            leaving = Effect(("atlocation", (a, start)), False, before=True)
            arriving = Effect(("atlocation", (a, end)), True)
            effects = (leaving, arriving) if start < end else (arriving, leaving)
            yield Operator(f"gotolocation {a} {start} {end} {r}", (), effects)


def _opening(reach: _Reach) -> Iterator[Operator]:
    a = reach.agent
    for r, place in reach.at.items():
        if r in reach.openable:
            here, opened = (("atlocation", (a, place)),), ("opened", (r,))
            opening = (Effect(("checked", (r,)), True), Effect(opened, True, before=False))
            yield Operator(f"openobject {a} {place} {r}", here, opening)
            closing = (Effect(opened, False, before=True),)
            yield Operator(f"closeobject {a} {place} {r}", here, closing)


def _carrying(reach: _Reach) -> Iterator[Operator]:
    """PickupObject and PutObject."""
    a = reach.agent
    pickupable = _all(reach.facts, "pickupable")
    hand = ("holdsany", (a,))
    for o, r in [(o, r) for o, found in reach.inside.items() for r in found]:
        if o in pickupable and r in reach.at:
            place = reach.at[r]
            effects = (
                Effect(("holds", (a, o)), True),
                Effect(hand, True, before=False),
                Effect(("inreceptacle", (o, r)), False, before=True),
                Effect(("objectatlocation", (o, place)), False),
            )
            yield Operator(f"pickupobject {a} {place} {o} {r}", _access(reach, r), effects)
    for o, r, ot, rt in reach.puts:
        place = reach.at[r]
        effects = (
            Effect(("holds", (a, o)), False, before=True),
            Effect(hand, False),
            Effect(("inreceptacle", (o, r)), True),
            Effect(("objectatlocation", (o, place)), True),
        )
        yield Operator(f"putobject {a} {place} {o} {r} {ot} {rt}", _access(reach, r), effects)


def _access(reach: _Reach, r: str) -> tuple[Atom, ...]:
    """What it needs to reach into a receptacle."""
    opened = (("opened", (r,)),) if r in reach.openable else ()
    return (("atlocation", (reach.agent, reach.at[r])), *opened)


def _treating(reach: _Reach) -> Iterator[Operator]:
    """CleanObject, HeatObject, CoolObject, ToggleObject and SliceObject."""
    a, facts = reach.agent, reach.facts
    for action, receptacle_type, ability, state, other in _TREATMENTS:
        able = _all(facts, ability)
        things = [o for o in reach.held if o in able]
        tools = [r for r, kind in facts["receptacletype"] if kind == receptacle_type]
        for r, o in itertools.product(tools, things):
            if r in reach.at:
                place = reach.at[r]
                needs = (("atlocation", (a, place)), ("holds", (a, o)))
                ended = [Effect((other, (o,)), False)] if other else []
                effects = tuple(sorted([Effect((state, (o,)), True), *ended]))
                yield Operator(f"{action} {a} {place} {r} {o}", needs, effects)
    for (o,) in facts["toggleable"]:
        lit = ("ison", (o,))
        effects = (
            Effect(lit, True, only_if=False),
            Effect(lit, False, only_if=True),
            Effect(("istoggled", (o,)), True),
        )
        for r in reach.inside.get(o, ()):
            if r in reach.at:
                needs = (("atlocation", (a, reach.at[r])), ("inreceptacle", (o, r)))
                yield Operator(f"toggleobject {a} {reach.at[r]} {o} {r}", needs, effects)
    knives = [o for o, kind in facts["objecttype"] if kind in _KNIVES and o in reach.held]
    for (o,), knife in itertools.product(facts["sliceable"], knives):
        effects = (Effect(("issliced", (o,)), True),)
        for place in reach.near.get(o, ()):
            if place in reach.locations:
                lying = ("objectatlocation", (o, place))
                needs = (("atlocation", (a, place)), ("holds", (a, knife)), lying)
                yield Operator(f"sliceobject {a} {place} {o} {knife}", needs, effects)
