"""A game's problem as what the engine reads: the objects and facts for textworld, the text for the
planner's native library.

Problems like alfworld's, of the domain it ships, are read and grounded here (5 ms); any other is
left to the planner's translator (0.1-2 s). Both describe the same actions and facts, and tests hold
one against the other.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import types
import zlib
from typing import NamedTuple

from spark_jax.envs.alfworld.grounding import DOMAIN, ground
from spark_jax.envs.alfworld.pddl import Domain, NotUnderstood, read_domain, read_problem
from spark_jax.envs.alfworld.sas import write_sas


class Translation(NamedTuple):
    """Plain lists and texts, to be kept and sent."""

    sas: str  # what the native library plays
    actions: list  # [name, [[?parameter, type], ...]]
    types: list  # [name, [types it is part of]]
    objects: list  # [name, type]
    facts: list  # [predicate, [name, ...]]: true at the start


def translate(domain: str, problem: str) -> Translation:
    """Raises whatever the planner's translator raises for a text that is no problem."""
    try:
        return _translate_here(_known(domain), problem)
    except NotUnderstood:
        return _translate_there(domain, problem)


def pack(translation: Translation) -> bytes:
    """About 9 KB for an embedded game, 28 KB for an official one."""
    return zlib.compress(json.dumps(translation).encode(), 1)


def unpack(packed: bytes) -> Translation:
    return Translation(*json.loads(zlib.decompress(packed)))


def task_of(translation: Translation) -> types.SimpleNamespace:
    """What textworld reads of a task of the planner's translator."""
    from fast_downward.translate.pddl.conditions import Atom

    def named(name, kind):
        return types.SimpleNamespace(name=name, type_name=kind)

    def action(name, parameters):
        parameters = [named(*parameter) for parameter in parameters]
        return types.SimpleNamespace(name=name, parameters=parameters)

    return types.SimpleNamespace(
        actions=[action(*each) for each in translation.actions],
        types=[
            types.SimpleNamespace(name=name, supertype_names=parents)
            for name, parents in translation.types
        ],
        objects=[named(*each) for each in translation.objects],
        init=[Atom(predicate, tuple(names)) for predicate, names in translation.facts],
    )


@functools.lru_cache(1)
def _known(domain: str) -> Domain:
    if hashlib.sha256(domain.encode()).hexdigest() != DOMAIN:
        raise NotUnderstood("another domain")
    return read_domain(domain)


def _translate_here(domain: Domain, text: str) -> Translation:
    problem = read_problem(text, domain)
    # As in the planner's translator: `object` is part of nothing, and all else part of it.
    kinds = [("object", []), *((kind, ["object"]) for kind in domain.types)]
    return Translation(
        write_sas(ground(problem, domain)),
        list(domain.actions.items()),
        kinds,
        list(problem.objects.items()),
        [(predicate, names) for predicate, all_ in problem.facts.items() for names in all_],
    )


def _translate_there(domain: str, problem: str) -> Translation:
    import fast_downward

    gc.disable()  # it makes many objects and drops none of them before it ends
    try:
        # Not the name that textworld calls: the engine puts what it has translated in its place.
        task, sas = fast_downward.interface.pddl2sas(domain, problem)
    finally:
        gc.enable()
    facts = []
    for fact in task.init:  # as textworld reads them
        if isinstance(fact, fast_downward.translate.pddl.f_expression.Assign):
            value = str(fact.expression.value)
            if fact.fluent.symbol != "total-cost" and not value.isdigit():
                facts.append((value, fact.fluent.args))
        elif fact.predicate != "=":
            facts.append((fact.predicate, fact.args))
    return Translation(
        sas,
        [(a.name, [(p.name, p.type_name) for p in a.parameters]) for a in task.actions],
        [(t.name, t.supertype_names) for t in task.types],
        [(o.name, o.type_name) for o in task.objects],
        facts,
    )
