"""Freed memory of this process, before and after sampling."""

from __future__ import annotations

import contextlib
import ctypes


def give_back() -> None:
    """Returns what was freed to the operating system; does nothing where libc is not glibc.

    glibc keeps freed blocks of less than 32 MB for later ones of their kind: on a CPU the sampler's
    copies of the weights after a rollout, gradients after an update, while what comes next wants
    blocks of other sizes.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
