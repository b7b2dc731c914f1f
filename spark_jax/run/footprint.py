"""What a run needs of each device's memory, asked before anything is compiled."""

from __future__ import annotations

import math
from typing import Any

import jax

from spark_jax.types import UserError


def device_bytes(tree: Any, itemsize: int = 0) -> int:
    """Bytes that arrays, or shapes with shardings, take on each of their devices; with numbers of
    `itemsize` bytes if that is given."""

    def one(x: Any) -> int:
        return math.prod(x.sharding.shard_shape(x.shape)) * (itemsize or x.dtype.itemsize)

    return sum(map(one, jax.tree.leaves(tree)))


def check(
    always: dict[str, int],
    sampling: dict[str, int],
    training: dict[str, int],
    room: int | None,
) -> str:
    """In one line, what is needed of a device (activations and temporary arrays come on top), or
    "" where the device does not say how much it has.

    Args:
      always, sampling, training: bytes on each device, by name: those that stay, and those that are
        there in one of the two phases only.
      room: bytes that a device has (`room_of_a_device`).

    Raises:
      UserError: they do not fit.
    """
    if room is None:
        return ""
    most = max(sum(sampling.values()), sum(training.values()))
    needed = sum(always.values()) + most
    text = (
        f"{needed / 1e9:.1f} of {room / 1e9:.1f} GB on each device, without activations "
        f"({_listed(always)}; while sampling {_listed(sampling)}; "
        f"while training {_listed(training)})"
    )
    if needed > room:
        raise UserError(
            f"this run needs {text}: lower rollout.pages, rollout.rows or rollout.path_tokens, or "
            "raise mesh.fsdp or mesh.tensor (the cache is cut over those that divide the model's "
            "number of key/value heads)."
        )
    return text


def _listed(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items())


def room_of_a_device() -> int | None:
    """Bytes that JAX may use on a device; None where it does not say (CPUs)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")
