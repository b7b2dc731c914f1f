"""Which implementation of attention runs, in the sampler and, where it is C++, in the learner: one
interface, (output, log-sum-exp)."""

from __future__ import annotations

from typing import Literal

import jax

from spark_jax.ops import cpu_kernels
from spark_jax.ops.gpu_kernels import LEAST_CHANNELS
from spark_jax.types import UserError

# xla: plain XLA, everywhere. native: C++ for CPUs (ops/cpu_kernels.py). pallas: kernels for GPUs
# (ops/gpu_kernels.py). pallas_interpret: the latter step by step on any machine, for tests.
Backend = Literal["xla", "native", "pallas", "pallas_interpret"]
GPU_KERNELS = ("pallas", "pallas_interpret")


def choose(name: str, spread: bool, head_dim: int | None = None) -> tuple[Backend, str]:
    """What `rollout.backend` stands for here, and why if that is less than there could be.

    Args:
      name: a `Backend`, or "auto".
      spread: whether the cache is spread over several devices.
      head_dim: channels of a head of the model, if that is to be checked too.

    Raises UserError for "native" or "pallas" where they cannot run.
    """
    if name in GPU_KERNELS:
        _check_pallas(name, spread)
        if head_dim is not None:
            _check_channels(name, head_dim)
    if name not in ("auto", "native"):
        return name, ""
    why = ""
    if name == "auto" and jax.default_backend() == "gpu" and not spread:
        return "pallas", ""  # if they stand the trial (ops/gpu_trial.py)
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


def _check_pallas(name: str, spread: bool) -> None:
    here = jax.default_backend()
    if name == "pallas" and here != "gpu":
        raise UserError(
            f"config.rollout.backend=pallas is for GPUs, and JAX runs on {here.upper()} here; use "
            "auto or xla."
        )
    if spread:
        # XLA cannot cut a kernel: it would gather the whole cache on every device.
        raise UserError(f"config.rollout.backend={name} is for one device; use xla.")


def _check_channels(name: str, head_dim: int) -> None:
    if head_dim < LEAST_CHANNELS or head_dim & (head_dim - 1):
        raise UserError(
            f"config.rollout.backend={name} needs heads of a power of two of channels, "
            f"{LEAST_CHANNELS} or more, and this model's have {head_dim}; use auto or xla."
        )
