"""`metrics.jsonl`: one JSON object a line with `step`, `phase` and numbers."""

from __future__ import annotations

import json
import math
import numbers
import pathlib
from collections.abc import Mapping
from typing import Any

from tensorboardX import SummaryWriter

from spark_jax.run.files import write_text
from spark_jax.types import UserError

PHASES = ("sft", "rl", "eval")


class MetricsWriter:
    """Appends to `metrics.jsonl` of a work folder, and to TensorBoard event files beside it.

    Args:
      workdir: the work folder, made when it is missing.
      last_step: step of the checkpoint that the run resumes from: lines of later steps are
        dropped, since the run will write them again. None keeps every whole line.
      lines: number of lines at that checkpoint (`writer.lines`, kept in the run's state); sharper
        than `last_step` when several lines share a step. Both may be given.

    A line cut short by a crash is dropped as well; the file is replaced in one rename.
    """

    def __init__(
        self,
        workdir: pathlib.Path | str,
        last_step: int | None = None,
        lines: int | None = None,
    ):
        self.path = pathlib.Path(workdir) / "metrics.jsonl"
        kept = read_metrics(workdir) if self.path.exists() else []
        if lines is not None:
            kept = kept[:lines]
        if last_step is not None:
            kept = [row for row in kept if row["step"] <= last_step]
        write_text(self.path, "".join(_line(row) for row in kept))
        self.lines = len(kept)  # whole lines in the file
        self._file = open(self.path, "a", encoding="utf-8", newline="\n")
        folder = self.path.parent / "tensorboard"
        self._events = SummaryWriter(
            str(folder),
            purge_step=None if last_step is None else last_step + 1,  # written again: hidden
            # The name holds the second, in which a run may be killed and started again.
            filename_suffix=f".{len(list(folder.glob('*')))}",
        )

    def write(self, step: int, phase: str, values: Mapping[str, Any]) -> None:
        """Writes one line and flushes it.

        Args:
          step: of the run, never going back.
          phase: "sft", "rl" or "eval".
          values: name -> number (Python, NumPy or JAX scalar); None is left out.

        Raises:
          UserError: a value is not finite, which means that the training has diverged. Nothing is
            written then.
        """
        if phase not in PHASES:
            raise ValueError(f"phase {phase!r} is none of {PHASES}")
        row: dict[str, Any] = {"step": int(step), "phase": phase}
        for name, value in values.items():
            if value is None:
                continue
            number = _number(name, value)
            if not math.isfinite(number):
                raise UserError(
                    f"{name} is {number} at step {step} ({phase}): the training has diverged; "
                    f"start again with a lower config.{phase if phase == 'sft' else 'rl'}"
                    ".learning_rate."
                )
            row[name] = number
        self._file.write(_line(row))
        self._file.flush()
        self.lines += 1
        for name, number in list(row.items())[2:]:
            self._events.add_scalar(name, number, step)

    def close(self) -> None:
        self._file.close()
        self._events.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(workdir: pathlib.Path | str) -> list[dict[str, Any]]:
    """All lines of `metrics.jsonl`; a last line cut short by a crash is left out.

    Raises:
      UserError: the file is missing, or a line that is not the last is damaged.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise UserError(
            f"{workdir} has no metrics.jsonl; give the work folder of a run that has started."
        ) from None
    lines = text.split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("it has no step")
        except ValueError as error:
            if number == len(lines):  # no newline after it: the write was cut short
                break
            raise UserError(
                f"line {number} of {path} is damaged ({error}); remove that line to go on."
            ) from None
        rows.append(row)
    return rows


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _number(name: str, value: Any) -> int | float:
    if hasattr(value, "item"):  # NumPy and JAX scalars
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"metric {name} is {value!r}, not a number")
