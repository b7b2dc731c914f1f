"""Episodes and paths that were paid for, with time or money, written down as they end.

A journal is a file of JSON lines under a head that says what they depend on: work that was stopped
goes on where it was, and work under other settings starts a journal of its own. No JAX here.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from spark_jax.envs.tasks import panel
from spark_jax.run.defaults import flatten
from spark_jax.run.evalfile import EpisodeResult
from spark_jax.run.files import write_text
from spark_jax.run.worlds import World
from spark_jax.types import Task


def open_journal(file: Path, head: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows written under the same head so far; the file is there afterwards. A file of another
    head is put aside as NAME.oldN."""
    lines, rows = [json.dumps(head)], []
    old = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    if old and _json(old[0]) == head:
        for line in old[1:]:
            row = _json(line)
            if row is not None:  # else what a killed process left of its last line
                lines.append(line)
                rows.append(row)
    elif old:
        number = len(list(file.parent.glob(f"{glob.escape(file.stem)}.old*{file.suffix}")))
        file.rename(file.with_name(f"{file.stem}.old{number}{file.suffix}"))
    write_text(file, "\n".join(lines) + "\n")
    return rows


def append_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows down, in one piece."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with file.open("a", encoding="utf-8") as out:
        out.write(text)


def _json(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def played_by(config: ConfigDict, prefixes: tuple[str, ...]) -> dict[str, Any]:
    """The settings under `prefixes`, as JSON has them: what an episode depends on. How many
    environments live changes no episode."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in flatten(config).items()
        if key.startswith(prefixes) and key != "env.workers"
    }


def panel_of(world: World, split: str, episodes: int) -> list[Task]:
    """The tasks of a split that an evaluation of so many `episodes` plays; 0: all."""
    tasks = world.splits[split]
    return panel(tasks, episodes or len(tasks), 0)


class Recorded:
    """The episodes of one split in the evaluation's file. A file of other settings is put aside."""

    def __init__(self, file: Path, head: Mapping[str, Any], split: str):
        self._file, self._split = file, split
        self._episodes: dict[tuple[int, Task], EpisodeResult] = {}
        for row in open_journal(file, head):
            task = Task(**row.pop("task"))
            sample = row.pop("sample")
            if row.pop("of") == split:
                self._episodes[sample, task] = EpisodeResult(task, **row)

    def __contains__(self, key: tuple[int, Task]) -> bool:
        return key in self._episodes

    def __len__(self) -> int:
        return len(self._episodes)

    def add(self, sample: int, played: Sequence[EpisodeResult]) -> None:
        """Writes episodes down, in one piece."""
        rows = []
        for result in played:
            self._episodes[sample, result.task] = result
            entry = {**result._asdict(), "task": vars(result.task)}
            rows.append({"of": self._split, "sample": sample, **entry})
        append_rows(self._file, rows)

    def finished(self) -> list[EpisodeResult]:
        """Those written down so far, of earlier calls too."""
        return [*self._episodes.values()]

    def success_rate(self) -> float:
        return sum(r.success for r in self._episodes.values()) / max(1, len(self._episodes))

    def results(self, tasks: Sequence[Task], samples: int) -> list[EpisodeResult]:
        """All episodes: the first of every task, then the second, …"""
        return [self._episodes[sample, task] for sample in range(samples) for task in tasks]
