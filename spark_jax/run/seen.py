"""What a model was trained on, as far as files tell: whether an evaluation asks for it again."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from spark_jax.run import warmup
from spark_jax.run.config import read_config
from spark_jax.run.files import write_text
from spark_jax.run.treefile import read_trees, tree_iterations, tree_path
from spark_jax.types import Task, UserError

RECORD = "training_tasks.json"  # in the folder of an exported model
Key = tuple[str, str, str, int, int]  # data, environment, type, variation, seed


def seen_tasks(workdir: Path, config: ConfigDict, checkpoint: str) -> set[Key] | None:
    """Tasks that the parameters of `checkpoint` were trained on: those of the run's warm-up
    dialogues and, but for the reference, of its trees (of an early step: of later trees too), and
    those of the export that it started from. None where that is not known, as of a local folder of
    weights without such a record. A model as a hub has it counts as trained on none, whatever its
    makers fed it.
    """
    if checkpoint == "initial":
        return _seen_before(config)
    if not (workdir / "warmup.jsonl").is_file() and not tree_iterations(workdir):
        return None
    before = _seen_before(read_config(workdir))
    return None if before is None else before | _seen_in(workdir, checkpoint != "reference")


def write_record(workdir: Path, folder: Path, checkpoint: str) -> None:
    """Writes beside an exported model what it was trained on, where that is known."""
    seen = seen_tasks(workdir, read_config(workdir), checkpoint)
    if seen is not None:
        write_text(folder / RECORD, json.dumps({"tasks": sorted(seen)}) + "\n")


def leaked(
    evaluated: Iterable[Task], seen: Collection[Key] | None, config: ConfigDict
) -> int | None:
    """How many of the evaluated episodes play a task of `seen`; a task is the same whatever split
    it was drawn for. None where `seen` is not known, or is of the same environment with other data
    (by name: one folder under two names is not recognised)."""
    if seen is None:
        return None
    data, known = _data(config), {key[0] for key in seen if key[1] == config.env.name}
    if known and data not in known:
        return None
    return sum(_key(task, data) in seen for task in evaluated)


def same_data(first: ConfigDict, second: ConfigDict) -> bool:
    """Whether equal numbers of tasks mean equal tasks in both runs."""
    return first.env.name == second.env.name and _data(first) == _data(second)


def _seen_before(config: ConfigDict) -> set[Key] | None:
    """What the weights were trained on that a run starts from."""
    path = config.model.path
    if not path or not Path(path).expanduser().exists():
        return set()  # from scratch, or a hub's
    record = Path(path).expanduser() / RECORD
    if record.is_file():
        try:
            return {(str(d), str(e), str(t), int(v), int(s)) for d, e, t, v, s in _tasks(record)}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{record} is damaged ({error}); export the model again.") from None
    return None


def _tasks(record: Path) -> list[Any]:
    return json.loads(record.read_text(encoding="utf-8"))["tasks"]


def _seen_in(workdir: Path, trees: bool) -> set[Key]:
    data = _data(read_config(workdir))
    tasks = set()
    if (workdir / "warmup.jsonl").is_file():
        tasks |= {example.task for example in warmup.load_examples(workdir / "warmup.jsonl")}
    for iteration in tree_iterations(workdir) if trees else ():
        tasks |= {Task(**tree["task"]) for tree in read_trees(tree_path(workdir, iteration))}
    return {_key(task, data) for task in tasks}


def _data(config: ConfigDict) -> str:
    """What the numbers of tasks count in: the same number is another task in other data."""
    folder = config.env.data_dir
    if folder not in ("", "official"):
        folder = str(Path(folder).expanduser().resolve())
    # Elsewhere env.tasks chooses types, which have names.
    people = config.env.name == "webshop" and config.env.tasks == "human"
    return f"{folder} human" if people else folder


def _key(task: Task, data: str) -> Key:
    return data, task.env, task.type, task.variation, task.seed
