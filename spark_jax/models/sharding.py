"""Where each parameter lives on a mesh: rules as data, outside the model.

Three axes: `data` (copies of the parameters), `fsdp` (parameters cut, gathered when used; rows of
a batch are cut over data and fsdp together) and `tensor` (heads, feed-forward channels and
vocabulary cut; activations are exchanged).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod

import jax
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from spark_jax.models.transformer import Params
from spark_jax.types import UserError

AXES = ("data", "fsdp", "tensor")

# First pattern found in "layers_0/q/kernel"-like paths wins.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    # [V, D]: cut by rows only. With channels cut over fsdp, XLA would spread the channels of the
    # residual stream over fsdp too and exchange activations in every layer.
    (r"(^|/)embed/embedding$", PartitionSpec(("tensor", "fsdp"))),
    (r"unembed/kernel$", PartitionSpec("fsdp", "tensor")),  # [D, V]
    (r"/(q|k|v|gate|up)/kernel$", PartitionSpec("fsdp", "tensor")),  # [D, H*C] or [D, F]
    (r"/(o|down)/kernel$", PartitionSpec("tensor", "fsdp")),  # [H*C, D] or [F, D]
    (r"/(q|k|v)/bias$", PartitionSpec("tensor")),
    (r"/scale$", PartitionSpec()),
)
# How the sampler cuts its copy of the matrices: heads and channels over fsdp as over tensor. Rows
# of a decode step are few: gathering weights, or cutting what products sum over, would cost an
# exchange for each product, and this costs two for each layer.
SAMPLER_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(^|/)embed/embedding$", PartitionSpec(("fsdp", "tensor"))),
    (r"(unembed|/q|/k|/v|/gate|/up)/kernel$", PartitionSpec(None, ("fsdp", "tensor"))),
    (r"/(o|down)/kernel$", PartitionSpec(("fsdp", "tensor"))),
    (r"/(q|k|v)/bias$", PartitionSpec(("fsdp", "tensor"))),
    (r"/scale$", PartitionSpec()),
)
CACHE_AXES = ("fsdp", "tensor"), ("tensor",), ("fsdp",), ()  # what heads may be cut over
ROWS = PartitionSpec(("data", "fsdp"))  # rows of a batch


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh with axes data, fsdp, tensor (Auto). One size may be -1: all remaining devices.

    Raises UserError when the sizes do not multiply to the number of devices, or when the devices
    belong to several processes.
    """
    if jax.process_count() > 1:
        raise UserError(
            f"this is one of {jax.process_count()} JAX processes, and a run is driven by one: "
            "start it on a single host, which may have several devices."
        )
    devices = jax.devices() if devices is None else list(devices)
    sizes = [data, fsdp, tensor]
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(
            f"mesh sizes {dict(zip(AXES, sizes, strict=True))} are not positive; at most one may "
            "be -1 (all remaining devices)."
        )
    if -1 in sizes:
        known = prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = max(len(devices) // known, 1)
    if prod(sizes) != len(devices):
        raise UserError(
            f"mesh data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]} needs {prod(sizes)} devices "
            f"but there are {len(devices)}; choose sizes whose product is {len(devices)}."
        )
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def spec_of(
    path: str,
    shape: Sequence[int],
    mesh: Mesh,
    rules: Sequence[tuple[str, PartitionSpec]] = RULES,
) -> PartitionSpec:
    """The rule for a path, without the axes that do not divide their dimension."""
    spec = next((spec for pattern, spec in rules if re.search(pattern, path)), None)
    if spec is None:
        raise UserError(f"no sharding rule matches parameter {path}; add one to the rules.")
    kept = []
    for size, axis in zip(shape, tuple(spec) + (None,) * (len(shape) - len(spec)), strict=True):
        names = list(axis if isinstance(axis, tuple) else () if axis is None else (axis,))
        while names and size % prod(mesh.shape[name] for name in names):
            names.pop()
        kept.append(tuple(names) if len(names) > 1 else names[0] if names else None)
    return PartitionSpec(*kept)


def param_shardings(
    params: Params, mesh: Mesh, rules: Sequence[tuple[str, PartitionSpec]] = RULES
) -> Params:
    """A tree of NamedSharding like `params` (arrays, or shapes from `param_shapes`)."""

    def one(path, leaf) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, spec_of(name, leaf.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(one, params)


def data_parts(mesh: Mesh) -> list[Mesh]:
    """The devices that hold one copy of the parameters each, as meshes of their own (data = 1)."""
    # Not by `make_mesh`, which may order devices anew.
    return [
        Mesh(mesh.devices[i : i + 1], AXES, axis_types=mesh.axis_types)
        for i in range(mesh.shape["data"])
    ]


def part_of_params(params: Params, part: Mesh) -> Params:
    """Parameters that lie on a mesh, as arrays of one of its `data_parts`. Nothing is copied."""

    def one(x: jax.Array, sharding: NamedSharding) -> jax.Array:
        here = {shard.device: shard.data for shard in x.addressable_shards}
        if part.size == 1:
            return here[part.devices.item()]
        pieces = [here[device] for device in part.devices.flat]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, pieces)

    return jax.tree.map(one, params, param_shardings(params, part))


def cache_sharding(kv_heads: int, mesh: Mesh) -> Sharding:
    """Of pages [P, K, …]: heads are cut over fsdp and tensor, else over the larger of the two that
    divides their number; over none, each device has all pages."""
    if mesh.size == 1:
        return SingleDeviceSharding(mesh.devices.item())
    sizes = {names: prod(mesh.shape[name] for name in names) for names in CACHE_AXES}
    dividing = [names for names in CACHE_AXES if kv_heads % sizes[names] == 0]
    names = max(dividing, key=sizes.get)
    return NamedSharding(mesh, PartitionSpec(*((None, names) if sizes[names] > 1 else ())))


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays whose first axis is rows of a batch (or tokens flattened from them)."""
    return NamedSharding(mesh, ROWS)
