"""Files that are either there whole or not at all."""

from __future__ import annotations

import os
import pathlib
import uuid

from spark_jax.types import UserError


def write_text(path: pathlib.Path | str, text: str) -> None:
    """Writes `text` under a temporary name, flushes it to the disk, then renames it to `path`.

    A reader (or a run killed at any moment) finds the old file or the new one, never a part.
    Missing parent folders are made.

    Raises:
      UserError: the folder cannot be made or written to.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path} cannot be written ({error.strerror}); choose a folder that can be."
        ) from None
