"""A scripted shopper for the warm-up: it searches, opens what looks right, compares, chooses
options and buys. It knows the goal's text and the pages it has read, nothing of the catalogue.

What it writes goes through what is asked for, point by point, before it decides: a small model that
has just written a word finds it on the page far more often than one that has not. Each point begins
with the words that stand before it in the instruction or on the page ("color: red", "price lower
than 40.00"): what follows the same words is what such a model copies best.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from spark_jax.envs.response import Parsed
from spark_jax.envs.trajectory import ExpertStep, Trajectory
from spark_jax.envs.webshop.environment import WebShopEnvironment
from spark_jax.envs.webshop.pages import SUB_PAGES
from spark_jax.types import StepResult, Task

MOST_OPENED = 4  # products looked at before it buys the best of them


class Wish(NamedTuple):
    """What the instruction says."""

    words: str  # attributes and kind, as one would search for them
    attributes: tuple[str, ...]
    kind: str
    options: tuple[tuple[str, str], ...]  # name and value, as ("color", "red")
    limit: float


class _Candidate(NamedTuple):
    asin: str
    title: str
    price: float
    tag: str  # the price as the page has it

    @property
    def brand(self) -> str:
        return self.title.split()[0]


class _Seen(NamedTuple):
    """An opened product."""

    candidate: _Candidate
    missing: tuple[str, ...]  # attributes that no page of it mentions
    lacks: tuple[str, ...]  # options that it does not have


def read_wish(instruction: str) -> Wish:
    """Of a synthetic goal, "Find me A, B KIND with C for D with size: S, and color: T, and price
    lower than X dollars". Where B ends and the kind begins the text does not say: B is taken to be
    the first two of four or more words. Other texts are searched for as they are."""
    text = instruction.strip()
    limit = re.search(r",? and price lower than ([\d.]+) dollars", text)
    text = text[: limit.start()] if limit else text
    begin = text.rfind(" with ", 0, text.find(": ") + 1)
    text, asked = (text[:begin], text[begin + 6 :]) if begin >= 0 else (text, "")
    options = re.split(r"(?:^|, and )([a-z][a-z ]*): ", asked)[1:]
    text = re.sub(r"^(?:find me|i(?:'m| am) looking for|i need|i want)\s+", "", text, flags=re.I)
    body, *rest = re.split(r" with | for ", text)
    *before, kind = body.split(", ")
    if len(kind.split()) >= 4:  # "plant based tomato salsa"
        before = [*before, " ".join(kind.split()[:2])]
        kind = " ".join(kind.split()[2:])
    attributes = [*before, *(part for piece in rest for part in piece.split(", "))]
    return Wish(
        words=re.sub(r"[],[]", "", " ".join([*before, kind, *rest])),  # no search has a bracket
        attributes=tuple(attributes),
        kind=kind,
        options=tuple((n, v.strip()) for n, v in zip(options[::2], options[1::2], strict=True)),
        limit=float(limit[1]) if limit else float("inf"),
    )


def shop(env: WebShopEnvironment, task: Task) -> Trajectory:
    """Plays `task` to its end."""
    start = env.start(task)
    visit = _Visit(env, start.goal)
    visit.play()
    return Trajectory(task, start, tuple(visit.steps), visit.score)


class _Visit:
    """One episode."""

    def __init__(self, env: WebShopEnvironment, goal: str):
        self.env, self.wish, self.goal = env, read_wish(goal), goal.lower()
        self.asked = goal.removeprefix("Find me ").rstrip(". ")
        self.steps: list[ExpertStep] = []
        self.score = 0.0
        self.seen: list[_Seen] = []

    def do(self, action: str, reasoning: str, others: Sequence[str] = ()) -> StepResult:
        """One step; an explore step where there are `others` worth a try."""
        result = self.env.step(action)
        self.steps.append(
            ExpertStep(action, result.observation, reasoning, bool(others), tuple(others))
        )
        self.score = result.score
        return result

    def play(self) -> None:
        wish = self.wish
        page = self.do(f"search[{wish.words}]", f"{wish.words}; search for it.")
        candidates = rank(read_results(page.observation), wish)
        for i, candidate in enumerate(candidates[:MOST_OPENED]):
            others = [f"click[{c.asin}]" for c in candidates[i + 1 : i + 4]]
            more = " first" if others else ""
            text = f"{self.asked}; {candidate.brand} may fit; look at it{more}."
            self.do(f"click[{candidate.asin}]", text, others)
            found = self.inspect(candidate)
            self.seen.append(found)
            if not found.missing and not found.lacks and candidate.price <= wish.limit:
                self.buy(found)
                return
            if i + 1 < min(len(candidates), MOST_OPENED):
                self.do("click[< prev]", f"{self._points(found)}; go back to the others.")
        self.settle()

    def inspect(self, candidate: _Candidate) -> _Seen:
        """Reads further pages of an opened product as long as an attribute is missing."""
        texts = [candidate.title.lower()]
        options = self.env.clickables()
        lacks = tuple(value for _, value in self.wish.options if value not in options)
        seen = _Seen(candidate, self._missing(texts), lacks)
        if not lacks and candidate.price <= self.wish.limit:
            for page in SUB_PAGES[:2]:
                if not seen.missing:
                    break
                text = f"{self._points(seen)}; see the {page}."
                read = self.do(f"click[{page}]", text).observation.lower()
                texts.append(read.replace(self.goal, ""))  # the full style repeats it on each page
                seen = seen._replace(missing=self._missing(texts))
                self.do("click[< prev]", "Read; back to the product.")
        return seen

    def buy(self, seen: _Seen) -> None:
        """Chooses the options that the open product has, and buys."""
        done = self._points(seen)
        for name, value in self.wish.options:
            if value in self.env.clickables():
                self.do(f"click[{value}]", f"{done}; choose {name}: {value}.")
                done = f"{name}: {value} is chosen"
        self.do("click[buy now]", f"{done}; buy it.")

    def settle(self) -> None:
        """Nothing fits: buys what fits best, or, with nothing found, ends where it is."""
        if not self.seen:
            return
        best = min(
            self.seen,
            key=lambda s: len(s.missing) + len(s.lacks) + (s.candidate.price > self.wish.limit),
        )
        if best is not self.seen[-1]:
            text = f"{best.candidate.brand} fits best; open it again."
            points = self._points(self.seen[-1])
            self.do("click[< prev]", f"{points}; none fits; go back to the best of them.")
            self.do(f"click[{best.candidate.asin}]", text)
        self.buy(best)

    def _missing(self, texts: Sequence[str]) -> tuple[str, ...]:
        return tuple(a for a in self.wish.attributes if not any(a in text for text in texts))

    def _points(self, seen: _Seen) -> str:
        """What was asked for and found, point by point, up to the first that is missing."""
        wish, points = self.wish, []
        if wish.limit < float("inf"):
            over = seen.candidate.price > wish.limit
            than = "not lower" if over else "lower"
            points.append(f"price: {seen.candidate.tag}, {than} than {wish.limit:.2f}")
            if over:
                return points[0]
        for name, value in wish.options:
            points.append(f"{name}: {value} is {'missing' if value in seen.lacks else 'there'}")
            if value in seen.lacks:
                return "; ".join(points)
        for attribute in wish.attributes:
            points.append(f"{attribute} is {'not said' if attribute in seen.missing else 'said'}")
            if attribute in seen.missing:
                break
        return "; ".join(points) or "It is what was asked for"


def misjudged(
    steps: Sequence[Parsed], observations: Sequence[str], i: int
) -> tuple[str, str] | None:
    """Reasoning and action of one who chooses an option where step `i` says it is missing; None
    where it says nothing of the kind, or the page has that word after all (`slips.Judgement`)."""
    said = re.match(r"((?:.*; )?([a-z ]+: )([^;]+)) is missing; ", steps[i].reasoning)
    if said is None or i == 0 or said[3] in read_lines(observations[i - 1]):
        return None
    return f"{said[1]} is there; choose {said[2]}{said[3]}.", f"click[{said[3]}]"


def read_lines(observation: str) -> list[str]:
    """The strings of a page, in both styles."""
    return re.split(r" \[SEP\] |\n", observation)


def read_results(observation: str) -> list[_Candidate]:
    """The products of a page of results."""
    parts = read_lines(observation)
    out = []
    for i, part in enumerate(parts[:-2]):
        if re.fullmatch(r"B[0-9A-Z]{9}", part, re.I):
            tag = parts[i + 2]
            prices = re.findall(r"\$([\d.]+)", tag)  # of a range the upper end is feared
            out.append(_Candidate(part, parts[i + 1], max(map(float, prices), default=0.0), tag))
    return out


def rank(candidates: Sequence[_Candidate], wish: Wish) -> list[_Candidate]:
    """Best first: of the kind, within the price, with the attributes in the title; then by the
    shop's own order."""
    kind = set(wish.kind.lower().split())

    def key(candidate: _Candidate) -> tuple:
        title = candidate.title.lower()
        return (
            candidate.price > wish.limit,
            -len(kind & set(re.findall(r"[\w'-]+", title))),
            -sum(attribute in title for attribute in wish.attributes),
        )

    return sorted(candidates, key=key)
