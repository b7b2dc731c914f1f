"""ALFWorld's tasks and prompts, of the embedded games or of the official ones.

`env.data_dir` says which: "" the embedded games, "official" the official ones in $ALFWORLD_DATA (or
where `alfworld-download` puts them), anything else their folder. A run uses one kind only.
"""

from __future__ import annotations

from typing import Literal

from spark_jax.envs.alfworld import official
from spark_jax.envs.alfworld.games import Game
from spark_jax.envs.alfworld.generate import games
from spark_jax.envs.alfworld.layouts import LIKELY
from spark_jax.envs.response import RESPONSE_RULES
from spark_jax.types import Start, Task, UserError

Style = Literal["short", "full"]

OFFICIAL = "official"
# What things are called, lamps apart: what is lit, clean, hot or cool is about other words.
NAMES = frozenset(kind.lower() for kind in LIKELY if not kind.endswith("Lamp"))


def source(data_dir: str) -> str:
    """What a run says about its games. Raises UserError when official ones are not there."""
    if not data_dir:
        return "ALFWorld: embedded games"
    return f"ALFWorld: official games in {official.data_folder(_folder(data_dir))}"


def split_tasks(tasks: str, protocol: str, data_dir: str, split: str) -> list[Task]:
    """All tasks of a split, by type.

    Args:
        tasks: "default" for all six types, or types separated by commas.
        protocol: "all_types", or "held_out": cool and pick-two are L2 and nowhere else.
        data_dir: see above.
        split: "train", "L0" (seen rooms), "L1" (unseen rooms), "L2" (unseen rooms and types).

    Returns:
        Tasks whose `variation` numbers the game from `official.FIRST` on: embedded games inside
        their split (L2 as in L1), official ones inside their split and type.

    Raises UserError for unknown names, and for a split without games.
    """
    if data_dir:
        return official.split_tasks(tasks, protocol, _folder(data_dir), split)
    types = official.selected_types(tasks, protocol, split)
    return [
        Task("alfworld", game.type, number, split=split)
        for number, game in enumerate(games(_numbering(split)), official.FIRST[split])
        if game.type in types
    ]


def find_game(data_dir: str, task: Task) -> Game:
    """The game of a task. Raises UserError when there is none."""
    if data_dir:
        return official.find_game(_folder(data_dir), task)
    all_games = games(_numbering(task.split))
    number = task.variation - official.FIRST[task.split]
    if 0 <= number < len(all_games):
        game = all_games[number]
        if game.type == task.type:
            return game
    raise UserError(
        f"There is no embedded game {task.variation} of type {task.type} in {task.split}: take "
        "tasks from split_tasks."
    )


def _folder(data_dir: str) -> str:
    return "" if data_dir == OFFICIAL else data_dir


def _numbering(split: str) -> str:
    return "L1" if split == "L2" else split


# ---- prompts


def system_prompt(style: Style) -> str:
    """The system text: empty for "short" (a model trained from scratch knows nothing else)."""
    if style == "short":
        return ""
    return (
        "You are an agent in a household. Fulfil the task in the room that you see. In each turn "
        "you see what your last action brought and choose one action.\n\n"
        "Actions (RECEP and OBJ are names with their number, as you see them: drawer 1, mug 2):\n"
        "- go to RECEP\n"
        "- open RECEP, close RECEP\n"
        "- take OBJ from RECEP (your hands hold one thing)\n"
        "- move OBJ to RECEP\n"
        "- clean OBJ with RECEP (a sinkbasin)\n"
        "- heat OBJ with RECEP (a microwave)\n"
        "- cool OBJ with RECEP (a fridge)\n"
        "- use OBJ (a lamp)\n"
        "- examine OBJ, examine RECEP, look, inventory\n"
        "'Nothing happens.' means that the action was not possible. Closed receptacles have to be "
        "opened before you see what is in them.\n\n" + RESPONSE_RULES
    )


def first_message(start: Start, style: Style) -> str:
    """The first user message: the task and the room. The short one lists the room alone."""
    if style == "short":
        room = start.observation.partition("Looking quickly around you, ")[2]
        return f"{start.goal}\n{room or start.observation}"
    return f"Your task is to: {start.goal}\n\n{start.observation}"
