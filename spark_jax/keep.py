"""Files that save time: where they lie, and how they are written by several processes at once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder of one kind of such files, in the user's home."""
    return Path.home() / ".cache" / "spark_jax" / name


def keep(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name of its own and rename it to `path`, making its folder.

    Raises OSError: what such a file is for goes on without it, only slower.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise
