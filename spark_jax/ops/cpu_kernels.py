"""Attention, and the sampler's products, as C++ for CPUs, which XLA calls through its FFI.

Built once by this machine's compiler, for its own processor, and kept in the user's cache. Where
there is no compiler plain XLA does it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.resources
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from spark_jax.keep import cache_folder, keep

_SOURCES = ("cpu_attention.cc", "cpu_products.cc", "cpu_tree_attention.cc")
_TARGETS = {
    "spark_decode": "SparkDecode",
    "spark_prefill": "SparkPrefill",
    "spark_write": "SparkWrite",
    "spark_multiply": "SparkMultiply",
    "spark_tree_forward": "SparkTreeForward",
    "spark_tree_backward": "SparkTreeBackward",
}
# What -ffast-math allows, without the switch it flips for the whole process (denormal numbers).
_FLAGS = (
    "-O3 -std=c++17 -fPIC -shared -fassociative-math -fno-signed-zeros -fno-trapping-math "
    "-fno-math-errno"
).split()
_BUILD_TIMEOUT_S = 300


@functools.cache
def load() -> str:
    """Builds (once a machine), loads and registers the kernels. Returns "" or why they are not
    there, in a few words."""
    try:
        library = ctypes.CDLL(str(_built()))
    except OSError as error:
        return str(error).splitlines()[0]
    for target, symbol in _TARGETS.items():
        capsule = jax.ffi.pycapsule(getattr(library, symbol))
        jax.ffi.register_ffi_target(target, capsule, platform="cpu")
    return ""


def _built() -> Path:
    """The shared library. Raises OSError when it cannot be built."""
    here = importlib.resources.files(__package__)
    sources = {name: (here / name).read_bytes() for name in (*_SOURCES, "cpu_kernels.h")}
    flags = [*_FLAGS, *_processor_flags()]
    what = (*sources.values(), " ".join(flags), jax.__version__, platform.machine(), _processor())
    name = hashlib.sha256(b"\0".join(x if isinstance(x, bytes) else x.encode() for x in what))
    path = cache_folder("kernels") / f"{name.hexdigest()[:16]}.so"
    if path.is_file():
        return path
    names = (os.environ.get("CXX", "c++"), "g++", "clang++")
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        raise OSError("there is no C++ compiler")
    with tempfile.TemporaryDirectory() as folder:
        text = "building the kernels for this processor (once, some 20 s)"
        print(text, file=sys.stderr, flush=True)
        for file, text in sources.items():
            (Path(folder) / file).write_bytes(text)
        command = [compiler, *flags, f"-I{jax.ffi.include_dir()}", "-o", "kernels.so", *_SOURCES]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise OSError(f"{compiler} took more than {_BUILD_TIMEOUT_S} s") from None
        if done.returncode:
            raise OSError(f"{compiler} failed: {(done.stderr.splitlines() or ['?'])[0]}")
        keep(path, (Path(folder) / "kernels.so").read_bytes())
    return path


def _processor_flags() -> tuple[str, ...]:
    if platform.machine().lower() in ("x86_64", "amd64"):
        return ("-march=native", "-mprefer-vector-width=512")
    return ("-mcpu=native",)


def _processor() -> str:
    """What this processor can do: a home folder may be shared by several machines."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()
