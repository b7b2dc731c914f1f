"""ScienceWorld, the real game (PyPI `scienceworld`), one small JVM per environment.

Calls the game's server directly: the package's own `step` lists every valid action each time
(60-240 ms instead of a few), and its `reset` may plan the gold path again.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import importlib.resources
import json
from typing import Literal, NamedTuple

from spark_jax.envs.response import RESPONSE_RULES
from spark_jax.envs.scienceworld.java import Jvm, check_alive, start_jvm, stop_jvm
from spark_jax.envs.scienceworld.rooms import abbreviate, tidy
from spark_jax.types import Start, StepResult, Task, UserError

Style = Literal["short", "full"]

# The paper: 29 types (use-thermometer left out), ten of them held out for L2.
PAPER_EXCLUDED = ("use-thermometer",)
PAPER_HELD_OUT = (
    "change-the-state-of-matter-of",
    "chemistry-mix-paint-tertiary-color",
    "find-plant",
    "grow-plant",
    "identify-life-stages-2",
    "inclined-plane-friction-unnamed-surfaces",
    "lifespan-longest-lived-then-shortest-lived",
    "measure-melting-point-unknown-substance",
    "mendelian-genetics-unknown-plant",
    "test-conductivity-of-unknown-substances",
)
# The default set: types with short paths, so that a small model on a CPU can learn them.
DEFAULT_TRAINED = (
    "chemistry-mix",
    "find-animal",
    "find-living-thing",
    "find-non-living-thing",
    "lifespan-longest-lived",
    "lifespan-shortest-lived",
    "power-component",
)
DEFAULT_HELD_OUT = ("find-plant", "lifespan-longest-lived-then-shortest-lived")
# Types that ask what one knows of a name: which animal lives longest (run/rename.py).
KNOWN_NAMES = (
    "lifespan-longest-lived",
    "lifespan-shortest-lived",
    "lifespan-longest-lived-then-shortest-lived",
)

NOT_UNDERSTOOD = "No known action matches that input."
# Said instead while the game waits for a choice (and then forgets the choice).
_NOT_A_CHOICE = "Unknown action."
_LONGEST_ACTION = 200  # characters; the longest sensible ones have about 100
_HEAP_MB = 88  # gives at most 200 MB of resident memory per JVM
GOLD_HEAP_MB = 512  # the planner of `gold_actions` needs more
GOLD_BYTES = 450e6  # of resident memory at most with it
_ANSWER_TIMEOUT_S = 120.0

# Every action of the game under "easy" (its own list, `connect`/`disconnect` only where a task has
# electricity), with what it does in a few words.
ACTIONS = (
    ("look around", "describe the room"),
    ("look at OBJ", "describe a thing closely"),
    ("look in OBJ", "list what a container holds"),
    ("inventory", "list what you carry"),
    ("task", "repeat the task"),
    ("go to LOC", "walk through an open door into the next room"),
    ("teleport to LOC", "go to any room at once"),
    ("open OBJ", "open a door or container"),
    ("close OBJ", "close a door or container"),
    ("pick up OBJ", "take a thing"),
    ("put down OBJ", "drop a thing"),
    ("move OBJ to OBJ", "put a thing into a container"),
    ("focus on OBJ", "say which thing is the answer: a wrong one ends the task"),
    ("pour OBJ in OBJ", "pour a liquid into a container"),
    ("dunk OBJ in OBJ", "dip a container into a liquid"),
    ("mix OBJ", "mix what a container holds"),
    ("activate OBJ", "turn a device on"),
    ("deactivate OBJ", "turn a device off"),
    ("use OBJ on OBJ", "use a tool, such as a thermometer, on a thing"),
    ("connect OBJ to OBJ", "join two points of a circuit, e.g. battery anode to wire terminal 1"),
    ("disconnect OBJ", "undo the connections of a part"),
    ("read OBJ", "read a note or recipe"),
    ("eat OBJ", "eat something"),
    ("flush OBJ", "flush a toilet"),
    ("wait", "let ten turns pass"),
    ("wait1", "let one turn pass"),
)


class TypeSets(NamedTuple):
    """The task types of a run."""

    trained: tuple[str, ...]
    held_out: tuple[str, ...]  # empty under the protocol `all_types`


class ScienceWorldEnvironment:
    """One game with its own JVM (at most 200 MB), started by the first `start`.

    Args:
        simplification: the game's simplifications, comma separated, or "easy" alone: those
            that the game's authors recommend for the task.
        success: "strict" counts a score of 100, "loose" an episode that the game ended with a
            score above 0 (the authors' rule).
        style: "full" gives the game's texts, "short" abbreviates the descriptions of rooms
            (see `rooms.abbreviate`).

    Errors: UserError for a task that does not exist or when there is no Java; whatever py4j
    raises when the JVM dies (then make a new environment).
    """

    def __init__(
        self,
        simplification: str = "easy",
        success: Literal["strict", "loose"] = "strict",
        style: Style = "full",
        heap_mb: int = _HEAP_MB,
    ):
        if success not in ("strict", "loose"):
            raise UserError(f"env.success is {success!r} but must be 'strict' or 'loose'.")
        self._simplification = simplification
        self._success = success
        self._style = _checked_style(style)
        self._heap_mb = heap_mb
        self._jvm: Jvm | None = None
        self._server = None
        self._done = True
        # Score of the last played action. (Before the first one the game still tells that of the
        # episode before.)
        self._raw = 0

    @property
    def pid(self) -> int | None:
        """Process id of the JVM, None before the first `start`."""
        return self._jvm.process.pid if self._jvm else None

    def start(self, task: Task) -> Start:
        """Load `task`; the first observation is the description of the room."""
        check_task(task)
        self._load(task, gold=False)
        return Start(
            _goal(self._server.getTaskDescription()), self._text(self._server.freeActionLook())
        )

    def step(self, action: str) -> StepResult:
        """Play one action (3-10 ms)."""
        if self._done:
            raise ValueError("step() was called before start() or after the end of the episode")
        check_alive(self._jvm)
        action = " ".join(action.split())
        if not action or len(action) > _LONGEST_ACTION:
            text = NOT_UNDERSTOOD  # an empty line would cancel a choice, an endless one stall
        else:
            text = self._text(self._server.step(action))
            self._raw = round(100 * self._server.getScore())  # -100 after a wrong `focus on`
            self._done = self._raw < 0 or bool(self._server.getCompleted())
        valid = text != NOT_UNDERSTOOD and not text.startswith(_NOT_A_CHOICE)
        score = float(max(self._raw, 0))
        success = score >= 100 if self._success == "strict" else self._done and score > 0
        return StepResult(text, score, self._done, success, valid)

    def gold_actions(self, task: Task) -> list[str]:
        """The game's own solution of `task` (0.3-1 s), in an environment made with GOLD_HEAP_MB.
        Call `start` before playing again."""
        check_task(task)
        self._load(task, gold=True)
        self._done = True
        return [str(action) for action in self._server.getGoldActionSequence()]

    def splits(self, task_type: str) -> tuple[int, int, int]:
        """Where the train, dev and test variations of a type end, asked from the game itself."""
        self._load(Task("scienceworld", task_type, 0), gold=False)
        self._done = True
        ends = [0]
        for listed in (
            self._server.getVariationsTrain(),
            self._server.getVariationsDev(),
            self._server.getVariationsTest(),
        ):
            ends.append(ends[-1] + len(listed))
            if list(listed) != list(range(*ends[-2:])):
                raise RuntimeError(f"the variations of {task_type} are not split in three ranges")
        return tuple(ends[1:])

    def close(self) -> None:
        """End the JVM."""
        jvm, self._jvm, self._server, self._done = self._jvm, None, None, True
        if jvm:
            stop_jvm(jvm)

    def _load(self, task: Task, gold: bool) -> None:
        if self._jvm is None:
            jar = str(importlib.resources.files("scienceworld") / "scienceworld.jar")
            self._jvm = start_jvm(jar, self._heap_mb, _ANSWER_TIMEOUT_S)
            java = self._jvm.gateway.jvm
            self._server = java.scienceworld.runtime.pythonapi.PythonInterface()
        check_alive(self._jvm)
        self._server.load(task.type, task.variation, self._simplification, gold)
        self._done, self._raw = False, 0

    def _text(self, text: str) -> str:
        text = tidy(text)
        return abbreviate(text) if self._style == "short" else text


# ---- tasks and splits


def task_types() -> tuple[str, ...]:
    """All 30 task types of the game, sorted."""
    return tuple(_split_ends())


def select_types(tasks: str, protocol: str) -> TypeSets:
    """Which types a run trains on and which it holds out.

    Args:
        tasks: "default", "paper", or task types separated by commas.
        protocol: "all_types" trains on every selected type; "held_out" keeps those of the paper's
            ten held-out types for L2.

    Raises UserError for an unknown type (naming the nearest), an unknown protocol, or a selection
    that leaves nothing to train on.
    """
    if protocol not in ("all_types", "held_out"):
        raise UserError(f"env.protocol is {protocol!r} but must be 'all_types' or 'held_out'.")
    if tasks == "default":
        chosen = DEFAULT_TRAINED + DEFAULT_HELD_OUT
    elif tasks == "paper":
        chosen = tuple(t for t in task_types() if t not in PAPER_EXCLUDED)
    else:
        chosen = tuple(name.strip() for name in tasks.split(",") if name.strip())
        for name in chosen:
            check_type(name)
    chosen = tuple(sorted(set(chosen)))
    if protocol == "all_types":
        trained, held_out = chosen, ()
    else:
        trained = tuple(t for t in chosen if t not in PAPER_HELD_OUT)
        held_out = tuple(t for t in chosen if t in PAPER_HELD_OUT)
    if not trained:
        raise UserError(
            f"env.tasks={tasks!r} with env.protocol={protocol!r} leaves no task type to train on: "
            "name at least one that is not held out."
        )
    return TypeSets(trained, held_out)


def split_tasks(tasks: str, protocol: str, split: str) -> list[Task]:
    """All tasks of a split, in a fixed order (type, variation).

    "train", "L0" and "L1" are the game's train, dev and test variations of the trained types;
    "L2" (protocol "held_out" only) the test variations of the held-out types.
    Raises UserError as `select_types` does, and for a split that the selection does not have.
    """
    sets = select_types(tasks, protocol)
    if split not in ("train", "L0", "L1", "L2"):
        raise UserError(f"The split {split!r} does not exist: use train, L0, L1 or L2.")
    if split == "L2" and not sets.held_out:
        raise UserError(
            f"There is no L2 with env.tasks={tasks!r} and env.protocol={protocol!r}: set "
            "env.protocol='held_out' and select a held-out type, or leave L2 out of eval.splits."
        )
    part = {"train": 0, "L0": 1, "L1": 2, "L2": 2}[split]
    return [
        Task("scienceworld", name, variation, split=split)
        for name in (sets.held_out if split == "L2" else sets.trained)
        for variation in range(*((0, *_split_ends()[name])[part : part + 2]))
    ]


def check_type(name: str) -> None:
    """Raises UserError when the game has no such task type, naming the nearest one."""
    if name not in task_types():
        nearest = difflib.get_close_matches(name, task_types(), n=1, cutoff=0.0)[0]
        raise UserError(f"ScienceWorld has no task type {name!r}: did you mean {nearest!r}?")


def check_task(task: Task) -> None:
    """Raises UserError when the game has no such task."""
    check_type(task.type)
    count = _split_ends()[task.type][-1]
    if not 0 <= task.variation < count:
        raise UserError(
            f"ScienceWorld's {task.type} has no variation {task.variation}: use 0 to {count - 1}."
        )


@functools.cache
def _split_ends() -> dict[str, tuple[int, int, int]]:
    """For each type, sorted, where its train, dev and test variations end; all start at 0.

    From the table shipped here when the installed game is of its version, else from the game.
    """
    table = json.loads((importlib.resources.files(__package__) / "splits.json").read_text())
    try:
        installed = importlib.metadata.version("scienceworld")
    except importlib.metadata.PackageNotFoundError:
        raise UserError("ScienceWorld is not installed: run `pip install scienceworld`.") from None
    if installed == table["version"]:
        return {name: tuple(ends) for name, ends in table["ends"].items()}
    from scienceworld.constants import ID2TASK

    environment = ScienceWorldEnvironment()
    try:
        return {name: environment.splits(name) for name in sorted(ID2TASK.values())}
    finally:
        environment.close()


# ---- texts


def system_prompt(style: Style) -> str:
    """The system text: empty for "short" (a model trained from scratch knows nothing else)."""
    if _checked_style(style) == "short":
        return ""
    actions = "\n".join(f"- {template}: {meaning}" for template, meaning in ACTIONS)
    return (
        "You are an agent in a text game about a house with a kitchen, bathroom, hallway, bedroom, "
        "living room, art studio, workshop, foundry, greenhouse and the outside. Solve the task "
        "step by step. In each turn you see what happened and choose one action.\n\n"
        f"Actions (OBJ is a thing you can see or carry, LOC a room):\n{actions}\n"
        "If the game finds your action ambiguous it lists choices: answer with the number.\n\n"
        + RESPONSE_RULES
    )


def first_message(start: Start, style: Style) -> str:
    """The first user message: the goal and the first observation."""
    if _checked_style(style) == "short":
        return f"{start.goal.removeprefix('Your task is to ')}\n{start.observation}"
    return f"Task: {start.goal}\n\n{start.observation}"


def _goal(description: str) -> str:
    return " ".join(description.split())


def _checked_style(style: str) -> Style:
    if style not in ("short", "full"):
        raise UserError(f"The prompt style is {style!r} but must be 'short' or 'full'.")
    return style
