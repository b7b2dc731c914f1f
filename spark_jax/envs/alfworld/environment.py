"""ALFWorld as an environment: the real engine in a process of its own.

The engine's state cannot be copied, so a fork is a replay, as in every environment here. (A process
without JAX could fork itself, an exact copy in 3 ms, but then each path would hold a process.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from spark_jax.envs.alfworld.engine import Answer, check_installed
from spark_jax.envs.alfworld.games import Game
from spark_jax.envs.alfworld.translations import translation
from spark_jax.envs.alfworld.worker import Refused, Worker, ask, start_worker, stop_worker
from spark_jax.types import Start, StepResult, Task, UserError

NOTHING = "Nothing happens."  # the engine's answer to what it does not understand or allow
_LONGEST_ACTION = 200  # characters; the longest sensible ones have about 60


class AlfWorldEnvironment:
    """One game at a time, in a process started by the first `start`.

    Args:
        find_game: the game of a task; raises UserError for one that does not exist.
        show_admissible: every observation ends with the list of commands that do something.

    Errors: UserError for a task that does not exist, for a game that the engine cannot open and
    when packages are missing; RuntimeError when the process dies (then make a new environment).
    """

    def __init__(self, find_game: Callable[[Task], Game], show_admissible: bool = False):
        self._find_game = find_game
        self._show_admissible = show_admissible
        self._worker: Worker | None = None
        self._done = True
        self.admissible: tuple[str, ...] = ()  # commands that do something now, sorted

    @property
    def pid(self) -> int | None:
        """Process id of the engine, None before the first `start`."""
        return self._worker.process.pid if self._worker else None

    def start(self, task: Task) -> Start:
        """Load the game of `task`; the first observation is the description of the room."""
        game = self._find_game(task)
        if self._worker is None:
            check_installed()
            self._worker = start_worker()
        self._done = True
        try:
            played = translation(game.problem, functools.partial(ask, self._worker, "translate"))
            answer = ask(self._worker, "start", game.problem, played)
        except Refused as error:
            raise UserError(
                f"ALFWorld's engine cannot open the game {game.name} ({error}): its problem must "
                "fit the domain of the installed package alfworld (0.4)."
            ) from error
        self._done = False
        return Start(game.goal, self._text(answer))

    def step(self, action: str) -> StepResult:
        """Play one action (3-5 ms). Upper case and spare blanks do not matter."""
        if self._done:
            raise ValueError("step() was called before start() or after the end of the episode")
        action = " ".join(action.lower().split())[:_LONGEST_ACTION]
        try:
            answer = ask(self._worker, "step", action)
        except Refused as error:
            raise RuntimeError(f"the engine failed: {error}") from error
        self._done = answer.won
        score = 100.0 if answer.won else 0.0
        return StepResult(self._text(answer), score, answer.won, answer.won, answer.text != NOTHING)

    def close(self) -> None:
        """End the process."""
        worker, self._worker, self._done = self._worker, None, True
        if worker:
            stop_worker(worker)

    def _text(self, answer: Answer) -> str:
        self.admissible = answer.admissible
        if not self._show_admissible:
            return answer.text
        return f"{answer.text}\nAdmissible actions: {', '.join(answer.admissible)}"
