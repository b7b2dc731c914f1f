"""What the native library plays of a game, made once: kept in memory for all environments of a
process, and on disk for later ones."""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import importlib.metadata
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

from spark_jax.keep import cache_folder, keep

_MOST = 512  # in memory, of about 9 KB (embedded) or 28 KB

_kept: collections.OrderedDict[str, bytes] = collections.OrderedDict()
_lock = threading.Lock()


def translation(problem: str, make: Callable[[str], bytes]) -> bytes:
    """The translation of a PDDL problem; `make(problem)` when there is none yet."""
    name = hashlib.sha256((_made_by() + problem).encode()).hexdigest()[:32]
    with _lock:
        if name in _kept:
            _kept.move_to_end(name)
            return _kept[name]
    file = folder() / name
    content = _read(file)
    if content is None:
        content = make(problem)
        with contextlib.suppress(OSError):
            keep(file, content)
    with _lock:
        _kept[name] = content
        while len(_kept) > _MOST:
            _kept.popitem(last=False)
    return content


def folder() -> Path:
    """Where they lie: 9 KB an embedded game, 0.1 GB for all official ones."""
    return cache_folder("alfworld") / "translations"


@functools.cache
def _made_by() -> str:
    """What else a translation depends on: domain and translator come with the packages, and
    ours lies beside this file."""
    parts = ("goals", "grounding", "pddl", "sas", "translate")
    texts = [Path(__file__).with_name(f"{part}.py").read_bytes() for part in parts]
    ours = hashlib.sha256(b"".join(texts)).hexdigest()
    packages = ("alfworld", "textworld", "fast-downward-textworld")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return "\n".join([*versions, ours, ""])


def _read(file: Path) -> bytes | None:
    """None: there is none, or it is damaged."""
    try:
        content = file.read_bytes()
        zlib.decompress(content)  # its checksum
    except (OSError, zlib.error):
        return None
    return content
