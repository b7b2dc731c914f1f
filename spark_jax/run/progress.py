"""Progress on the terminal: a bar where there is a terminal, one line per unit elsewhere."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

_RECENT = 8  # units that the time left is estimated from


class Progress:
    """Progress of one phase, for example 24 iterations of RL.

        with Progress("rl", total=24, unit="iteration", done=start) as progress:
            for iteration in range(start, 24):
                progress.note("rollout 5 of 64 leaves")
                ...
                progress.advance(success=0.31, tokens=18_000)

    Args:
      phase: name shown in front.
      total: units of work in all.
      unit: what one is called.
      done: units that a resumed run has behind it; they count as done and not for the speed.
      stream: where to, standard error by default.
      clock: seconds, for tests.
    """

    def __init__(
        self,
        phase: str,
        total: int,
        unit: str,
        done: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._phase, self._total, self._unit, self._done = phase, total, unit, done
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._seconds: list[float] = []  # of each unit of this process
        self._last = clock()
        self._numbers = ""
        self._bars: Bars | None = None
        if self._stream.isatty():
            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(file=self._stream),
                transient=False,
            )
            self._task = self._bars.add_task(phase, total=total, completed=done, text="")

    def advance(self, units: int = 1, tokens: int | None = None, **numbers: float) -> None:
        """Reports `units` finished units.

        Args:
          units: finished since the last call.
          tokens: tokens sampled in them, shown as a rate over the same time.
          numbers: shown in the order given, for example success=0.25.
        """
        now = self._clock()
        elapsed = now - self._last
        self._last = now
        self._done += units
        self._seconds.extend([elapsed / units] * units)
        parts = [f"{name} {_short(value)}" for name, value in numbers.items()]
        if tokens is not None and elapsed > 0:
            parts.append(f"{tokens / elapsed:,.0f} tokens/s")
        parts.append(f"{duration(elapsed / units)} per {self._unit}")
        left = self.seconds_left()
        if self._done < self._total and left is not None:
            parts.append(f"about {duration(left)} left")
        self._numbers = " · ".join(parts)
        if self._bars is None:
            line = f"{self._phase} {self._unit} {self._done}/{self._total} · {self._numbers}"
            print(line, file=self._stream, flush=True)
        else:
            self._bars.update(self._task, completed=self._done, text=self._numbers)

    @property
    def is_terminal(self) -> bool:
        """True where a bar moves; elsewhere every `advance` is a line."""
        return self._bars is not None

    def expect(self, total: int) -> None:
        """A new guess at the units in all, where something else ends the phase."""
        self._total = total
        if self._bars is not None:
            self._bars.update(self._task, total=total)

    def note(self, text: str) -> None:
        """Says what is going on inside the current unit. Shown on terminals only."""
        if self._bars is not None:
            shown = f"{self._numbers} · {text}" if self._numbers else text
            self._bars.update(self._task, text=shown)

    def seconds_left(self) -> float | None:
        """Seconds to the end if the units to come take as long as the recent ones did (their
        median, so one slow compilation does not count); None before the first one is done."""
        if not self._seconds:
            return None
        return statistics.median(self._seconds[-_RECENT:]) * max(0, self._total - self._done)

    def __enter__(self) -> Progress:
        self._last = self._clock()
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()


def duration(seconds: float) -> str:
    """`0.42 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.2g} s" if seconds < 0.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _short(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
