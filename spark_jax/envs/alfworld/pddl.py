"""Reading the PDDL of ALFWorld's games: nested lists, typed names, one problem.

Read is what alfworld's games are made of, and nothing else: whatever else a text holds raises
`NotUnderstood`, and whoever asked has to leave it to the planner's translator.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_TOKEN = re.compile(r"[()]|[^\s()]+")
_COMMENT = re.compile(r";[^\n]*")
_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_SECTIONS = [":domain", ":goal", ":init", ":objects", "problem"]


class NotUnderstood(ValueError):
    """The text says more, or something else, than this reader knows how to take."""


class Domain(NamedTuple):
    """What a problem needs to know of its domain; all names in lower case."""

    types: tuple[str, ...]  # in the order of the file
    predicates: dict[str, tuple[str, ...]]  # types of the arguments
    actions: dict[str, tuple[tuple[str, str], ...]]  # (?parameter, its type)


class Problem(NamedTuple):
    """A household and what to do in it."""

    objects: dict[str, str]  # type of each, in the order of the file
    facts: dict[str, list[tuple[str, ...]]]  # arguments by predicate, each once; all predicates
    goal: Sequence  # nested lists


def read_list(text: str) -> list:
    """The one list that `text` is, of words and lists; lower case, as PDDL does not tell the cases
    apart."""
    open_lists: list[list] = [[]]
    for token in _TOKEN.findall(_COMMENT.sub("", text).lower()):
        if token == "(":
            inner: list = []
            open_lists[-1].append(inner)
            open_lists.append(inner)
        elif token == ")":
            open_lists.pop()
            if not open_lists:
                raise NotUnderstood("a bracket closes that was not opened")
        else:
            open_lists[-1].append(token)
    (*rest, found) = open_lists[0] or [None]
    if len(open_lists) > 1 or rest or not isinstance(found, list):
        raise NotUnderstood("the text is not one list")
    return found


def typed_names(words: Sequence) -> Iterator[tuple[str, str]]:
    """`a b - type c - other` as pairs of a name and its type. Every name needs a type."""
    waiting: list[str] = []
    rest = iter(words)
    for word in rest:
        if not isinstance(word, str):
            raise NotUnderstood(f"{word} among names")
        if word != "-":
            waiting.append(word)
            continue
        kind = next(rest, None)
        if not waiting or not isinstance(kind, str):
            raise NotUnderstood("a type without names, or names without a type")
        yield from ((name, kind) for name in waiting)
        waiting = []
    if waiting:
        raise NotUnderstood(f"{waiting[0]} has no type")


def read_domain(text: str) -> Domain:
    """Types, predicates and parameters of a domain without type hierarchy."""
    types: tuple[str, ...] = ()
    predicates, actions = {}, {}
    for section in read_list(text)[1:]:
        if section[0] == ":types":
            types = tuple(section[1:])
        elif section[0] == ":predicates":
            for name, *parameters in section[1:]:
                predicates[name] = tuple(kind for _, kind in typed_names(parameters))
        elif section[0] == ":action":
            named = dict(zip(section[2::2], section[3::2], strict=True))
            actions[section[1]] = tuple(typed_names(named[":parameters"]))
    return Domain(types, predicates, actions)


def read_problem(text: str, domain: Domain) -> Problem:
    """A problem of objects of the domain's types, plain facts and one goal. Raises NotUnderstood
    for any other, a fact of other types than the domain declares among them."""
    start, *sections = read_list(text)
    if start != "define" or not all(isinstance(s, list) and s for s in sections):
        raise NotUnderstood("it defines no problem")
    if sorted(str(section[0]) for section in sections) != _SECTIONS:
        raise NotUnderstood("it has other sections than objects, facts and a goal")
    named = {section[0]: section[1:] for section in sections}
    if len(named[":goal"]) != 1:
        raise NotUnderstood("it has no one goal")
    objects: dict[str, str] = {}
    for name, kind in typed_names(named[":objects"]):
        if name in objects or kind not in domain.types or not _NAME.fullmatch(name):
            raise NotUnderstood(f"the object {name} - {kind}")
        objects[name] = kind
    facts = _facts(named[":init"], objects, domain.predicates)
    return Problem(objects, facts, named[":goal"][0])


def _facts(
    init: Sequence, objects: Mapping[str, str], predicates: Mapping[str, tuple[str, ...]]
) -> dict[str, list[tuple[str, ...]]]:
    found: dict[str, dict] = {name: {} for name in predicates}  # keys: in order, and each once
    for fact in init:
        try:
            name, *arguments = fact
            if tuple([objects[a] for a in arguments]) != predicates[name]:
                raise NotUnderstood(f"the fact {fact}: its types")
            found[name][tuple(arguments)] = None
        except (KeyError, TypeError, ValueError) as error:
            raise NotUnderstood(f"the fact {fact}") from error
    return {name: list(arguments) for name, arguments in found.items()}
