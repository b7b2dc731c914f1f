"""A scripted agent for the warm-up: it looks where things may be, opens what is closed, takes,
cleans, heats or cools, and places. It knows the goal's sentence and the texts it has seen, nothing
else of the game.

What it writes says the goal again and then what it looks for, before what it sees: a small model
that has just written a word finds it in the text above far more often than one that has not.
Whether a thing is here is decided by what follows its name: the number in the list, or a colon.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import NamedTuple

from spark_jax.envs.alfworld.layouts import LIKELY
from spark_jax.envs.base import Environment
from spark_jax.envs.response import Parsed
from spark_jax.envs.trajectory import ExpertStep, Trajectory
from spark_jax.types import StepResult, Task, UserError

_log = logging.getLogger(__name__)

_TRIES = 4  # processes for one task when they die, as in the pool
# Receptacle types in which a thing may be, by common sense, likely ones first.
_LIKELY = {
    thing.lower(): tuple(place.lower() for place in places) for thing, places in LIKELY.items()
}
_SMALL = ("drawer", "cabinet")  # there are many, all closed: after what is seen at a glance
# The paper's data has an explore tag about every fifth step, and none after step 25.
_EXPLORE_EVERY, _LAST_EXPLORE = 5, 25
_TOOLS = {"clean": ("sinkbasin", "clean"), "heat": ("microwave", "hot"), "cool": ("fridge", "cool")}
_STATES = {"clean": "clean", "hot": "heat", "cool": "cool"}


class Wish(NamedTuple):
    """What the goal's sentence asks for."""

    thing: str  # class, e.g. "mug"
    place: str  # class of the receptacle it goes to, or of the lamp
    change: str = ""  # clean, heat, cool; "": none
    count: int = 1
    lit: bool = False  # look at it under the lamp


def read_goal(sentence: str) -> Wish:
    """Reads a sentence of alfworld's goal library. Raises UserError for any other."""
    text = sentence.strip().rstrip(".")
    if m := re.fullmatch(r"(?:look at|examine the) (\w+) (?:under|with) the (\w+)", text):
        return Wish(m[1], m[2], lit=True)
    if m := re.fullmatch(r"(?:put|find) two (\w+) (?:and put them )?in (\w+)", text):
        return Wish(m[1], m[2], count=2)
    if m := re.fullmatch(r"put a (clean|hot|cool) (\w+) in (\w+)", text):
        return Wish(m[2], m[3], _STATES[m[1]])
    if m := re.fullmatch(r"(clean|heat|cool) some (\w+) and put it in (\w+)", text):
        return Wish(m[2], m[3], m[1])
    if m := re.fullmatch(r"put (?:a|some) (\w+) (?:in|on) (\w+)", text):
        return Wish(m[1], m[2])
    raise UserError(
        f"the scripted expert cannot read the goal {sentence!r}: it knows the sentences of "
        "ALFWorld's goal library, such as 'put a clean mug in desk.'; say sft.trajectories=0."
    )


def play(env: Environment, task: Task, max_steps: int = 50) -> Trajectory:
    """Plays `task` until it is won, given up or `max_steps` are done."""
    start = env.start(task)
    visit = _Visit(env, start.goal, listed(start.observation), max_steps)
    visit.play()
    return Trajectory(task, start, tuple(visit.steps), visit.score)


def play_surely(env: Environment, task: Task, max_steps: int = 50) -> Trajectory:
    """`play`, once more from the start where the process of `env` dies. Raises UserError when it
    dies again and again."""
    for _ in range(_TRIES):
        try:
            return play(env, task, max_steps)
        except (RuntimeError, OSError) as error:
            env.close()  # the next start opens another process
            last = error
            _log.warning("an environment died while the expert played: %s", error)
    raise UserError(
        f"The environment of {task.env} {task.type} variation {task.variation} died {_TRIES} times "
        f"while the expert played it (last: {last}): check the memory and the disk of this "
        "machine."
    ) from last


def listed(observation: str) -> list[str]:
    """The names that a text says one sees: "you see a mug 2, and a pen 1." -> mug 2, pen 1."""
    text = observation.partition("\n")[0]  # behind it there may be a list of actions
    seen = re.search(r"you see (.+?)\.$", text)
    return re.findall(r"an? ([a-z]+ \d+)", seen[1]) if seen else []


class _Visit:
    """One episode."""

    def __init__(self, env: Environment, goal: str, places: Sequence[str], max_steps: int):
        self.env, self.wish, self.max_steps = env, read_goal(goal), max_steps
        self.aim = f"To {goal.strip().rstrip('.')}"
        self.steps: list[ExpertStep] = []
        self.score = 0.0
        self.places = sorted(places, key=_numbered)
        self.contents: dict[str, list[str]] = {}  # what was seen there
        self.open: set[str] = set()
        self.closed: set[str] = set()
        self.here = ""
        self.delivered: list[str] = []
        self.lost = False

    @property
    def over(self) -> bool:
        return self.lost or self.score >= 100.0 or len(self.steps) >= self.max_steps

    def play(self) -> None:
        wish = self.wish
        while not self.over:
            source = self.search(wish.thing)
            if self.over:
                break
            thing = self.take(source)
            if wish.change:
                self.change(thing)
            if wish.lit:
                self.light(thing)
                break  # nothing more can be done
            self.deliver(thing)

    # ---- parts of a plan

    def search(self, kind: str) -> str:
        """Where a thing of this kind is, going from place to place until one is seen."""
        tried = ""
        while not self.over:
            if source := self.known(kind):
                return source
            left = self.candidates(kind)
            if not left:
                self.lost = True
                break
            self.visit(left, kind, tried)
            tried = left[0]
        return ""

    def visit(self, left: list[str], kind: str, tried: str) -> None:
        """Goes to the first of `left` and looks into it."""
        place = left[0]
        likely = [p for p in left if _class(p) in _LIKELY.get(kind, ())] or left
        others = [p for p in likely if _class(p) != _class(place)]
        seen = "not here; " if tried else ""
        if tried and _class(tried) == _class(place):
            self.go(place, f"find {kind}: {seen}try {place} next.")
        elif others:
            ways = " or ".join(_at(_class(p)) for p in (place, others[0]))
            text = f"find {kind}: {seen}it may be {ways}; try {place} first."
            self.go(place, text, _one_of_each(others)[:3])
        else:
            self.go(place, f"find {kind}: {seen}it may be {_at(place)}; go there.")
        if place in self.closed and not self.over:
            self.look_inside(place, f"find {kind}: {place} is closed; open it.")

    def take(self, source: str) -> str:
        kind = self.wish.thing
        thing = self.of_kind(self.contents[source], kind)[0]
        if self.here != source:
            self.go(source, f"find {thing}: it was {_at(source)}; go back for it.")
        if source in self.closed:
            self.look_inside(source, f"find {thing}: {source} is closed; open it.")
        self.do(f"take {thing} from {source}", f"find {thing}: it is here; take it.")
        self.contents[source] = [t for t in self.contents[source] if t != thing]
        return thing

    def change(self, thing: str) -> None:
        verb = self.wish.change
        kind, state = _TOOLS[verb]
        tool = next((p for p in self.places if _class(p) == kind), "")
        if not tool:
            self.lost = True
            return
        if self.here != tool:
            self.go(tool, f"make it {state}: go to {tool}.")
        self.do(f"{verb} {thing} with {tool}", f"make it {state} with {tool}.")

    def deliver(self, thing: str) -> None:
        target = self.target()
        if not target:
            self.lost = True
            return
        if self.here != target:
            self.go(target, f"bring it to {target}.")
        if target in self.closed:
            self.look_inside(target, f"open {target}, which is closed.")
        self.do(f"move {thing} to {target}", f"leave {thing} {_at(target)}.")
        self.delivered.append(thing)

    def light(self, thing: str) -> None:
        kind = self.wish.place
        source = self.search(kind)
        if self.over:
            return
        lamp = self.of_kind(self.contents[source], kind)[0]
        if self.here != source:
            self.go(source, f"find {lamp}: it was {_at(source)}; bring {thing} there.")
        self.do(f"use {lamp}", f"find {lamp}: it is here; turn it on.")

    # ---- what it knows

    def known(self, kind: str) -> str:
        """A place where such a thing was seen, this one first."""
        places = [p for p, things in self.contents.items() if self.of_kind(things, kind)]
        if self.wish.count == 2 and self.target() in places:
            places.remove(self.target())  # it lies there already
        return self.here if self.here in places else next(iter(places), "")

    def of_kind(self, things: Sequence[str], kind: str) -> list[str]:
        return [t for t in things if _class(t) == kind and t not in self.delivered]

    def candidates(self, kind: str) -> list[str]:
        """Places not looked into yet, likely ones first."""
        likely = _LIKELY.get(kind, ())

        def key(place: str) -> tuple:
            name = _class(place)
            rank = likely.index(name) if name in likely else len(likely)
            return (rank == len(likely), name in _SMALL, rank, _numbered(place))

        unknown = [p for p in self.places if p not in self.contents]
        return sorted(unknown, key=key)

    def target(self) -> str:
        """The place to bring things to: of two things both to the same one."""
        names = [p for p in self.places if _class(p) == self.wish.place]
        holds = [p for p in names if self.of_kind(self.contents.get(p, ()), self.wish.thing)]
        if self.wish.count == 2 and not self.delivered and holds:
            return holds[0]
        return names[0] if names else ""

    # ---- actions

    def go(self, place: str, text: str, others: Sequence[str] = ()) -> None:
        result = self.do(f"go to {place}", text, [f"go to {p}" for p in others])
        if result is not None and not result.valid:  # one stands before it already
            self.here = place
            if place not in self.contents:
                result = self.do(f"examine {place}", f"examine {place}, which is within reach.")
        if result is None or not result.valid:
            return
        self.here = place
        if "is closed" in result.observation.partition("\n")[0]:
            self.closed.add(place)
        else:
            self.contents[place] = listed(result.observation)

    def look_inside(self, place: str, text: str) -> None:
        result = self.do(f"open {place}", text)
        if result is not None:
            self.closed.discard(place)
            self.contents[place] = listed(result.observation)

    def do(self, action: str, reasoning: str, others: Sequence[str] = ()) -> StepResult | None:
        """One step; an explore step where there are `others` worth a try. None when it is over."""
        if self.over:
            return None
        result = self.env.step(action)
        recent = any(step.explore for step in self.steps[1 - _EXPLORE_EVERY :])
        explore = bool(others) and not recent and len(self.steps) < _LAST_EXPLORE
        others = tuple(others) if explore else ()
        text = f"{self.aim}, {reasoning}"
        self.steps.append(ExpertStep(action, result.observation, text, explore, others))
        self.score = result.score
        return result


def misjudged(
    steps: Sequence[Parsed], observations: Sequence[str], i: int
) -> tuple[str, str] | None:
    """Reasoning and action of one who takes the wanted thing (or the lamp) where step `i` says it
    is not; None where it says nothing of the kind, and where such a thing lies there that is not
    wanted, for taking it would not be refused (`slips.Judgement`)."""
    said = re.match(r"(.*, find (\w+)): not here; ", steps[i].reasoning)
    place = re.fullmatch(r"(?:go to|open|examine) (.+)", steps[i - 1].action) if i else None
    if said is None or place is None:
        return None
    if said[2] in map(_class, listed(observations[i - 1])):
        return None
    return f"{said[1]} 1: it is here; take it.", f"take {said[2]} 1 from {place[1]}"


# ---- words


def _class(name: str) -> str:
    return name.partition(" ")[0]


def _numbered(name: str) -> tuple[str, int]:
    kind, _, number = name.partition(" ")
    return kind, int(number or 0)


def _one_of_each(places: Sequence[str]) -> list[str]:
    """The first of each class, in order."""
    return list({_class(p): p for p in reversed(places)}.values())[::-1]


def _at(place: str) -> str:
    """ "in drawer", "on desk": closed things and basins hold things inside."""
    inside = ("drawer", "cabinet", "fridge", "microwave", "safe", "garbagecan", "sinkbasin",
              "bathtubbasin", "laundryhamper", "box")  # fmt: skip
    return f"{'in' if _class(place) in inside else 'on'} {place}"
