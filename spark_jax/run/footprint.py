"""What a run needs of each device's memory, asked before anything is compiled."""

from __future__ import annotations

import math
from typing import Any

import jax

from spark_jax.types import UserError


def device_bytes(tree: Any) -> int:
    """Bytes that arrays, or shapes with shardings, take on each of their devices."""

    def one(x: Any) -> int:
        return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize

    return sum(map(one, jax.tree.leaves(tree)))


def check(parts: dict[str, int], room: int | None) -> str:
    """In one line, what is needed of a device while it samples (activations and temporary arrays
    come on top), or "" where the device does not say how much it has.

    Args:
      parts: bytes on each device, by name.
      room: bytes that a device has (`room_of_a_device`).

    Raises:
      UserError: they do not fit.
    """
    if room is None:
        return ""
    needed = sum(parts.values())
    listed = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items())
    text = f"{needed / 1e9:.1f} of {room / 1e9:.1f} GB on each device ({listed})"
    if needed > room:
        raise UserError(
            f"this run needs {text}: lower rollout.pages, rollout.rows or rollout.path_tokens, or "
            "raise mesh.fsdp or mesh.tensor."
        )
    return text


def room_of_a_device() -> int | None:
    """Bytes that JAX may use on a device; None where it does not say (CPUs)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")
