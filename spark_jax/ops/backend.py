"""Which implementation of attention runs, in the sampler and, where it is C++, in the learner: one
interface, (output, log-sum-exp)."""

from __future__ import annotations

from typing import Literal

import jax

from spark_jax.ops import cpu_kernels
from spark_jax.types import UserError

# xla: plain XLA, everywhere. native: C++ for CPUs (ops/cpu_kernels.py). pallas: kernels for GPUs
# (ops/gpu_kernels.py). pallas_interpret: the latter step by step on any machine, for tests.
Backend = Literal["xla", "native", "pallas", "pallas_interpret"]


def choose(name: str, spread: bool) -> tuple[Backend, str]:
    """What `rollout.backend` stands for here, and why if that is less than there could be.

    Args:
      name: a `Backend`, or "auto".
      spread: whether the cache is spread over several devices.

    Raises UserError for "native" where it cannot run.
    """
    if name not in ("auto", "native"):
        return name, ""
    why = ""
    if jax.default_backend() != "cpu":
        why = "is for CPUs"
    elif spread:
        why = "is for one device"
    if why:
        if name == "native":
            raise UserError(f"config.rollout.backend=native {why}; use xla.")
        return "xla", ""
    why = cpu_kernels.load()
    if not why:
        return "native", ""
    if name == "native":
        raise UserError(f"config.rollout.backend=native cannot be built: {why}; use auto or xla.")
    return "xla", f"attention by plain XLA, slower than the C++ kernels: {why}"
