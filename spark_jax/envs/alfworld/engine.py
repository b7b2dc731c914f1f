"""The real engine of ALFWorld: textworld's PDDL environment with alfworld's logic.

Everything here runs in the process of one environment (worker.py): the engine is native code with
global state, its translator and parsers are Python with global state, and it is bound to one core.

Stock, a step takes 35-90 ms and a reset 0.3-1.4 s, most of it spent on parsing the same few texts
and copying the same objects. `quicken` remembers them; no text changes (tests hold both side by
side).
"""

from __future__ import annotations

import copy
import functools
import gc
import importlib.util
import os
import shutil
import sys
import types
from typing import NamedTuple

from spark_jax.envs.alfworld.translate import Translation, pack, task_of, translate, unpack
from spark_jax.types import UserError

INSTALL = "pip install -e '.[alfworld]' && pip install --no-deps textworld==1.7.0 alfworld==0.4.2"
_HEADER = "-= Welcome to TextWorld, ALFRED! =-\n\n"
_TASK = "\n\nYour task is to: "


class Answer(NamedTuple):
    """What the engine says to a start or an action."""

    text: str
    won: bool
    admissible: tuple[str, ...]  # every command that would do something now, sorted


def check_installed() -> None:
    """Raises UserError when a package is missing, and says how to get it."""
    needed = {"textworld": "textworld", "alfworld": "alfworld", "fast_downward": "its planner"}
    missing = [needed[name] for name in needed if importlib.util.find_spec(name) is None]
    if not missing:
        return
    tools = [tool for tool in ("g++", "make") if shutil.which(tool) is None]
    first = f"install {' and '.join(tools)} (the planner is compiled), then run" if tools else "run"
    raise UserError(f"ALFWorld needs {' and '.join(missing)}: {first} `{INSTALL}`.")


class Engine:
    """Plays one game at a time. A process makes one and loads game after game into it: each object
    maps another copy of the native library (34 MB) that is never given back."""

    def __init__(self):
        check_installed()
        do_without_jericho()
        import fast_downward
        import textworld
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
        from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH
        from textworld.envs.pddl import PddlEnv, logic

        quicken()
        self._downward, self._logic = fast_downward, logic
        infos = textworld.EnvInfos(feedback=True, won=True, admissible_commands=True)
        self._game = PddlEnv(infos)
        # The planner gets a translation of its own of each game; nothing here asks it for a plan.
        self._game.downward_lib.load_sas_replan = lambda sas: None
        self._env = AlfredDemangler(self._game, shuffle=False)
        with open(ALFRED_PDDL_PATH) as domain, open(ALFRED_TWL2_PATH) as grammar:
            self._domain, self._grammar = domain.read(), grammar.read()
        self._translated: tuple[bytes, Translation | None] = b"", None  # the last one
        self._commands = functools.lru_cache(8)(lambda problem: {})
        gc.freeze()  # what is there by now stays: the collector need not look at it again

    def translate(self, problem: str) -> bytes:
        """What the native library plays, made from a PDDL problem of alfworld's domain (6 ms; 0.1-2
        s for one that is not like alfworld's). Raises whatever the translator raises for a text
        that is none."""
        translation = translate(self._domain, problem)
        packed = pack(translation)
        self._translated = packed, translation
        return packed

    def start(self, problem: str, packed: bytes) -> Answer:
        """Begin a game; the text is the description of the room alone."""
        made_from, translation = self._translated
        if translation is None or packed != made_from:
            translation = unpack(packed)
        translated = task_of(translation), translation.sas
        # textworld asks for it twice, once with the planner's options.
        self._downward.pddl2sas = lambda *args, **options: translated
        game = {"pddl_domain": self._domain, "grammar": self._grammar, "pddl_problem": problem}
        self._env.load(game)
        remember_commands(self._game, self._commands(problem))
        # A reset makes the first state again, which nobody has touched yet.
        make_state, self._logic.PddlState = self._logic.PddlState, lambda *_: self._game._pddl_state
        try:
            answer = _answer(self._env.reset())
        finally:
            self._logic.PddlState = make_state
        room = answer.text.removeprefix(_HEADER).partition(_TASK)[0]
        return answer._replace(text=room.strip())

    def step(self, action: str) -> Answer:
        """Play one action."""
        state, _, _ = self._env.step(action)
        return _answer(state)


def do_without_jericho() -> None:
    """textworld imports jericho, for games of another kind: a build and 415 MB that nothing here
    needs. Where it is missing, an empty module with what is used on import stands in for it."""
    if "jericho" not in sys.modules and importlib.util.find_spec("jericho") is None:
        stand_in = types.ModuleType("jericho")
        stand_in.UnsupportedGameWarning = stand_in.TruncatedInputActionWarning = UserWarning
        sys.modules["jericho"] = stand_in


def _answer(state) -> Answer:
    return Answer(state.feedback.strip(), bool(state["won"]), tuple(state["admissible_commands"]))


# ---- speed


@functools.cache
def quicken() -> None:
    """Make textworld remember what it parses, in this process. Called once."""
    import fast_downward
    from textworld import logic as facts
    from textworld.envs.pddl import logic, textgen

    # One engine in a process needs no copy of the library to itself: a link to it is shared.
    fast_downward.interface.shutil = types.SimpleNamespace(copyfile=os.symlink)
    logic.GameLogic = functools.lru_cache(4)(logic.GameLogic)

    parse = functools.cache(textgen._parse_and_convert)

    def parse_copy(text, rule_name="symbols", trace=False):
        return [copy.copy(symbol) for symbol in parse(text, rule_name=rule_name)]

    textgen._parse_and_convert = parse_copy
    query = facts.Rule.parse_conjunctive_query
    facts.Rule.parse_conjunctive_query = functools.cache(query)
    textgen.copy_context = _copy_context


def remember_commands(game, known: dict[tuple, str]) -> None:
    """Make a loaded PddlEnv derive the text of each command once, and keep it in `known`. (The
    grammar looks up for it what does not change in a game: names, and which furniture is where.)"""
    grammar = game._logic.grammar
    templates = {action.template for action in game._logic.actions.values()}

    def derive(start, context):
        if start not in templates:
            return type(grammar).derive(grammar, start, context)
        key = (start, *((slot.name, thing.name) for slot, thing in context["mapping"].items()))
        if key not in known:
            known[key] = type(grammar).derive(grammar, start, context)
        return known[key]

    grammar.derive = derive


def _copy_context(context: dict) -> dict:
    """A copy of its own for the two parts that are changed."""
    return {
        **context,
        "variables": dict(context["variables"]),
        "mapping": dict(context["mapping"]),
    }
