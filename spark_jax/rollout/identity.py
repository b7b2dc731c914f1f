"""Random keys from identity: who draws, never when (the same tree grows whatever else is
in the batch and however long environments take)."""

from __future__ import annotations

import hashlib
import random

import numpy as np


def _digest(parts: tuple) -> bytes:
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()


def row_key(*parts) -> np.ndarray:
    """Raw key data, uint32 [2], of one identity such as (seed, phase, iteration, occurrence,
    path of child indices). Parts must be ints, strings or tuples of these."""
    return np.frombuffer(_digest(parts), np.uint32).copy()


def host_random(*parts) -> random.Random:
    """A Python generator of one identity, for draws on the host."""
    return random.Random(int.from_bytes(_digest(parts), "big"))
