"""Files that are either there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib

from spark_jax.types import UserError


def write_text(path: pathlib.Path | str, text: str) -> None:
    """Writes `text` under a temporary name, flushes it to the disk, then renames it to `path`.

    A reader (or a run killed at any moment) finds the old file or the new one, never a part. The
    temporary name is always the same, so what a killed run left is overwritten by the next one.
    Missing parent folders are made.

    Raises:
      UserError: the folder cannot be made or written to.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path} cannot be written ({error.strerror}); choose a folder that can be."
        ) from None
