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
import importlib.util
import shutil
import sys
import types
from typing import NamedTuple

from spark_jax.types import UserError

INSTALL = "pip install -e '.[alfworld]' && pip install --no-deps textworld==1.7.0 alfworld==0.4.2"
_HEADER = "-= Welcome to TextWorld, ALFRED! =-\n\n"
_TASK = "\n\nYour task is to: "
_TRANSLATED = 16  # games whose translations are kept; each holds about 6 MB


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
    tools = [tool for tool in ("g++", "cmake", "make") if shutil.which(tool) is None]
    first = f"install {' and '.join(tools)} (the planner is compiled), then run" if tools else "run"
    raise UserError(f"ALFWorld needs {' and '.join(missing)}: {first} `{INSTALL}`.")


class Engine:
    """Plays one game at a time. A process makes one and loads game after game into it: each object
    maps another copy of the native library (34 MB) that is never given back."""

    def __init__(self):
        check_installed()
        _do_without_jericho()
        import textworld
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
        from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH
        from textworld.envs.pddl import PddlEnv

        quicken()
        infos = textworld.EnvInfos(feedback=True, won=True, admissible_commands=True)
        self._env = AlfredDemangler(PddlEnv(infos), shuffle=False)
        with open(ALFRED_PDDL_PATH) as domain, open(ALFRED_TWL2_PATH) as grammar:
            self._logic = {"pddl_domain": domain.read(), "grammar": grammar.read()}

    def start(self, problem: str) -> Answer:
        """Begin a game; the text is the description of the room alone. Raises whatever the
        translator raises for a text that is no problem of this domain."""
        self._env.load({**self._logic, "pddl_problem": problem})
        answer = _answer(self._env.reset())
        room = answer.text.removeprefix(_HEADER).partition(_TASK)[0]
        return answer._replace(text=room.strip())

    def step(self, action: str) -> Answer:
        """Play one action."""
        state, _, _ = self._env.step(action)
        return _answer(state)


def _do_without_jericho() -> None:
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

    fast_downward.pddl2sas = functools.lru_cache(_TRANSLATED)(fast_downward.pddl2sas)
    logic.GameLogic = functools.lru_cache(4)(logic.GameLogic)

    parse = functools.cache(textgen._parse_and_convert)

    def parse_copy(text, rule_name="symbols", trace=False):
        return [copy.copy(symbol) for symbol in parse(text, rule_name=rule_name)]

    textgen._parse_and_convert = parse_copy
    query = facts.Rule.parse_conjunctive_query
    facts.Rule.parse_conjunctive_query = functools.cache(query)
    textgen.copy_context = _copy_context


def _copy_context(context: dict) -> dict:
    """A copy of its own for the two parts that are changed."""
    return {
        **context,
        "variables": dict(context["variables"]),
        "mapping": dict(context["mapping"]),
    }
