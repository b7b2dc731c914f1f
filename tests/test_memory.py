"""Freed memory goes back to the operating system."""

import ctypes
import subprocess
import sys

import pytest

SCRIPT = """
import resource, numpy as np
from spark_jax.cache.memory import give_back
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6
del (large := [np.ones(30 * 2**17)])[0]  # from now on blocks of up to 30 MB are kept
arrays = [np.ones(2**17) for _ in range(200)]  # of 1 MB
last = arrays.pop()
full = resident()
arrays.clear()
kept = resident()
give_back()
print(full - kept, full - resident())
"""


def test_freed_blocks_are_given_back():
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("libc is not glibc")
    out = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    freed, given_back = map(float, out.stdout.split())
    assert freed < 50 and given_back > 150, out.stderr
