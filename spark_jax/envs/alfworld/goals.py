"""What fulfils a goal: the ways to choose its things, each with the facts that must then be true.

A goal of ALFWorld says that there are things with certain facts: conjunctions and `exists`, and
`(not (= ?a ?b))` for two different ones. Any other form raises NotUnderstood.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from spark_jax.envs.alfworld.pddl import NotUnderstood, typed_names

Arguments = tuple[str, ...]
Atom = tuple[str, Arguments]  # predicate and names


class _Wanted(NamedTuple):
    """A goal without its nesting; each `exists` has variables of its own."""

    types: dict[str, str]  # of the variables
    atoms: list[Atom]  # arguments are variables or names
    different: list[tuple[str, str]]


def ways_to_reach(
    goal: Sequence,
    tables: Mapping[str, Collection[Arguments]],
    predicates: Mapping[str, tuple[str, ...]],
    changing: Collection[str],
) -> list[tuple[Atom, ...]]:
    """Sets of atoms of `changing` predicates, sorted; the goal is reached when all of one are true.

    Args:
        goal: nested lists.
        tables: by predicate the arguments with which it can become, or always is, true.
        predicates: types of the arguments.
    """
    wanted = _Wanted({}, [], [])
    _flatten(goal, {}, wanted)
    _check(wanted, predicates)
    choices = [{}]
    for predicate, slots in _order(wanted.atoms, tables):
        choices = _joined(choices, slots, tables[predicate])
    ways = {
        tuple(
            sorted(
                (predicate, tuple([choice.get(slot, slot) for slot in slots]))
                for predicate, slots in wanted.atoms
                if predicate in changing
            )
        )
        for choice in choices
        if all(choice[a] != choice[b] for a, b in wanted.different)
    }
    if not ways or () in ways:
        raise NotUnderstood("a goal that cannot be missed, or never reached")
    return sorted(ways)


def _flatten(condition: Sequence, names: Mapping[str, str], wanted: _Wanted) -> None:
    match condition:
        case ["and", *parts]:
            for part in parts:
                _flatten(part, names, wanted)
        case ["exists", list(variables), inner]:
            names = dict(names)
            for name, kind in typed_names(variables):
                names[name] = f"{name} {len(wanted.types)}"  # no other has this number
                wanted.types[names[name]] = kind
            _flatten(inner, names, wanted)
        case ["not", ["=", str(one), str(other)]] if one in names and other in names:
            wanted.different.append((names[one], names[other]))
        case [str(predicate), *slots] if all(isinstance(slot, str) for slot in slots):
            wanted.atoms.append((predicate, tuple([names.get(slot, slot) for slot in slots])))
        case _:
            raise NotUnderstood(f"the condition {condition}")


def _check(wanted: _Wanted, predicates: Mapping[str, tuple[str, ...]]) -> None:
    """Variables are in atoms, and there of the type that all entries of a table have."""
    used = set()
    for predicate, slots in wanted.atoms:
        kinds = predicates.get(predicate, ())
        if len(slots) != len(kinds):
            raise NotUnderstood(f"the condition {predicate}")
        for slot, kind in zip(slots, kinds, strict=True):
            if slot in wanted.types:
                used.add(slot)
                if wanted.types[slot] != kind:
                    raise NotUnderstood(f"{slot} in {predicate}")
            elif slot.startswith("?"):
                raise NotUnderstood(f"{slot} is no variable")
    if len(used) < len(wanted.types):
        raise NotUnderstood("a variable of no condition")


def _order(atoms: Sequence[Atom], tables: Mapping[str, Collection[Arguments]]) -> list[Atom]:
    """Those first of which most is known already, then those with few entries."""
    out: list[Atom] = []
    known: set[str] = set()
    waiting = list(atoms)

    def cost(atom: Atom) -> tuple[int, int]:
        predicate, slots = atom
        return sum(s.startswith("?") and s not in known for s in slots), len(tables[predicate])

    while waiting:
        out.append(min(waiting, key=cost))
        waiting.remove(out[-1])
        known.update(out[-1][1])
    return out


def _joined(
    choices: Sequence[dict[str, str]], slots: Arguments, table: Collection[Arguments]
) -> list[dict[str, str]]:
    """Every choice with every entry of the table that agrees with it."""
    if not choices:
        return []
    free = [slot.startswith("?") and slot not in choices[0] for slot in slots]
    entries: dict[Arguments, list[Arguments]] = {}
    for entry in table:
        key = tuple([name for name, f in zip(entry, free, strict=True) if not f])
        new = tuple([name for name, f in zip(entry, free, strict=True) if f])
        entries.setdefault(key, []).append(new)
    fixed = [slot for slot, f in zip(slots, free, strict=True) if not f]
    names = [slot for slot, f in zip(slots, free, strict=True) if f]
    if len(set(names)) < len(names):
        raise NotUnderstood(f"{names} twice in one condition")
    return [
        choice | dict(zip(names, new, strict=True))
        for choice in choices
        for new in entries.get(tuple([choice.get(slot, slot) for slot in fixed]), ())
    ]
