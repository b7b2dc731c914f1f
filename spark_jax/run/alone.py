"""One process at a time in a work folder."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from spark_jax.types import UserError

NAME = ".lock"  # stays in the folder; what counts is who holds it


@contextlib.contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Holds the work folder for this process, to its end at most.

    Raises UserError if another process plays this run, or the folder cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / NAME, "a")  # noqa: SIM115
    except OSError as error:
        raise UserError(
            f"{workdir} cannot be written ({error.strerror}); choose a folder that can be."
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process plays the run in {workdir}; wait for it, or choose another "
                "--workdir."
            ) from None
        try:
            yield
        finally:
            if [path.name for path in workdir.iterdir()] == [NAME]:  # a mistake, before anything
                with contextlib.suppress(OSError):
                    (workdir / NAME).unlink()
                    workdir.rmdir()
