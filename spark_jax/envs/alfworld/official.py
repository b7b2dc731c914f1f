"""The official games, as `alfworld-download` puts them down:

    DATA/json_2.1.1/{train,valid_seen,valid_unseen}/TYPE-.../trial_.../game.tw-pddl

with a `traj_data.json` beside each. As in alfworld itself, games with sliced or movable things and
those not marked as solvable are left out (3,553, 140 and 134 remain).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from spark_jax.envs.alfworld.games import HELD_OUT, TASK_TYPES, Game, game_of_file
from spark_jax.keep import cache_folder, keep
from spark_jax.types import Task, UserError

# L2 is the part of valid_unseen whose types are held out.
FOLDERS = {"train": "train", "L0": "valid_seen", "L1": "valid_unseen", "L2": "valid_unseen"}
# Games are numbered from here in each split, so that no number stands for two of them: whether a
# task was in a run's training data is asked without its split.
FIRST = {"train": 0, "L0": 100_000, "L1": 200_000, "L2": 200_000}
_GAME = "game.tw-pddl"


def data_folder(data_dir: str = "") -> Path:
    """Where the games lie: `data_dir`, else $ALFWORLD_DATA, else the folder that
    `alfworld-download` writes to. Raises UserError when there are none."""
    folder = Path(data_dir or os.environ.get("ALFWORLD_DATA") or Path.home() / ".cache/alfworld")
    folder = folder.expanduser()
    for games in (folder, folder / "json_2.1.1"):
        if any((games / name).is_dir() for name in FOLDERS.values()):
            return games
    raise UserError(
        f"There are no ALFWorld games in {folder}: run `alfworld-download` and point env.data_dir "
        "or ALFWORLD_DATA at its folder, the one that holds json_2.1.1."
    )


def split_tasks(tasks: str, protocol: str, data_dir: str, split: str) -> list[Task]:
    """All tasks of a split, by type and folder.

    Args:
        tasks: "default" for all six types, or types separated by commas.
        protocol: "all_types", or "held_out": cool and pick-two are L2 and nowhere else.
        data_dir: see `data_folder`.
        split: "train", "L0" (valid_seen), "L1" (valid_unseen), "L2".

    Raises UserError for unknown names, and for a split without games.
    """
    types = selected_types(tasks, protocol, split)
    folder = data_folder(data_dir)
    found = _listed(folder, FOLDERS[split])
    out = [
        Task("alfworld", name, number, split=split)
        for name in sorted(types)
        for number in range(FIRST[split], FIRST[split] + len(found.get(name, ())))
    ]
    if not out:
        raise UserError(
            f"There are no games of {', '.join(types)} in {folder / FOLDERS[split]}: select other "
            "env.tasks, or run `alfworld-download` again."
        )
    return out


def selected_types(tasks: str, protocol: str, split: str) -> tuple[str, ...]:
    """The task types of a split (see `split_tasks`), official or not."""
    if protocol not in ("all_types", "held_out"):
        raise UserError(f"env.protocol is {protocol!r} but must be 'all_types' or 'held_out'.")
    if split not in FOLDERS:
        raise UserError(f"The split {split!r} does not exist: use train, L0, L1 or L2.")
    chosen = [name.strip() for name in tasks.split(",") if name.strip()]
    chosen = list(TASK_TYPES) if chosen == ["default"] else chosen
    for name in chosen:
        if name not in TASK_TYPES:
            raise UserError(
                f"ALFWorld has no task type {name!r}: env.tasks takes 'default' or some of "
                f"{', '.join(TASK_TYPES)}."
            )
    if split == "L2" and protocol != "held_out":
        raise UserError(
            f"There is no L2 with env.protocol={protocol!r}: set env.protocol='held_out', or leave "
            "L2 out of eval.splits."
        )
    held_out = HELD_OUT if protocol == "held_out" else ()
    types = tuple(n for n in TASK_TYPES if n in chosen and (n in held_out) == (split == "L2"))
    if not types:
        raise UserError(
            f"env.tasks={tasks!r} with env.protocol={protocol!r} leaves no task type in {split}: "
            "select one more."
        )
    return types


def find_game(data_dir: str, task: Task) -> Game:
    """The game of a task; reads its file (the last few games are remembered). Raises UserError when
    there is none, or it is broken."""
    folder = data_folder(data_dir)
    if task.split not in FOLDERS:
        raise UserError(f"The split {task.split!r} does not exist: use train, L0, L1 or L2.")
    paths = _listed(folder, FOLDERS[task.split]).get(task.type, ())
    first = FIRST[task.split]
    if not first <= task.variation < first + len(paths):
        have = f"use {first} to {first + len(paths) - 1}" if paths else "it has none of this type"
        raise UserError(
            f"ALFWorld's {task.split} has no game {task.variation} of {task.type}: {have}."
        )
    path = paths[task.variation - first]
    return _read_once(folder / path, task.type, path)


@functools.lru_cache(64)  # of up to 100 KB
def _read_once(path: Path, task_type: str, name: str) -> Game:
    return read_game(path, task_type, name)


def read_game(path: Path, task_type: str, name: str) -> Game:
    """One `game.tw-pddl`. Raises UserError when it cannot be read."""
    fields = _checked_fields(path)
    try:
        return game_of_file(name, task_type, fields)
    except ValueError as error:
        raise _broken(path, error) from error


def _checked_fields(path: Path) -> Mapping:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError("it holds no JSON object")
        return fields
    except (OSError, ValueError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is no game of ALFWorld ({error}): run `alfworld-download` again.")


# ---- which games there are


@functools.cache
def _listed(folder: Path, part: str) -> dict[str, list[str]]:
    """Solvable games of `folder`/`part` by type: paths below `folder`, sorted."""
    known = _read_index(folder, part)
    index = {}
    for path in sorted((folder / part).glob(f"*/*/{_GAME}")):
        name = path.relative_to(folder).as_posix()
        if "movable" in name or "Sliced" in name or not path.with_name("traj_data.json").exists():
            continue
        status = path.stat()
        stamp = [status.st_mtime_ns, status.st_size]
        entry = known.get(name)
        if entry is None or entry[:2] != stamp:
            entry = [*stamp, bool(_checked_fields(path).get("solvable"))]
        index[name] = entry
    if index != known:
        _write_index(folder, part, index)
    out: dict[str, list[str]] = {}
    for name, (_, _, solvable) in index.items():
        task_type = name.split("/")[1].partition("-")[0]
        if solvable and task_type in TASK_TYPES:
            out.setdefault(task_type, []).append(name)
    return out


def _index_file(folder: Path, part: str) -> Path:
    key = hashlib.sha256(f"{folder.resolve()}/{part}".encode()).hexdigest()[:16]
    return cache_folder("alfworld") / f"{key}.json"


def _read_index(folder: Path, part: str) -> dict[str, list]:
    """What an earlier run found in each file: [time of change, bytes, solvable]."""
    try:
        index = json.loads(_index_file(folder, part).read_text())
        return index if all(len(entry) == 3 for entry in index.values()) else {}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write_index(folder: Path, part: str, index: dict[str, list]) -> None:
    """Whole or not at all; a home that cannot be written to only costs time."""
    with contextlib.suppress(OSError):
        keep(_index_file(folder, part), json.dumps(index).encode())
