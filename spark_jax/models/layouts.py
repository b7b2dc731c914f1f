"""Orders in which the sampler may hold the weights, and the products that go with each.

plain: as they are trained and stored, kernels [D, F].
turned: kernels [F, D]. On a CPU XLA multiplies few rows faster with the weights on the left.
packed: in the order in which the C++ products read them (ops/cpu_products.py), those of one
input side by side. For one CPU, and for any number of rows.

The last two are copies, there while a rollout lasts.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from spark_jax.models.config import ModelConfig
from spark_jax.ops.bits import bits
from spark_jax.ops.cpu_products import multiply, pack

Params = Any  # nested dictionaries of arrays
Layout = Literal["plain", "turned", "packed"]

# Up to so many rows XLA is faster with turned weights: by a fifth in the layers, by a third for the
# table of a tied model (docs/performance.md).
FEW_ROWS = 32
TOGETHER = (("q", "k", "v"), ("gate", "up"))  # products of one input, one kernel when packed


class LaidOutDense(nn.Module):
    """`nn.Dense` over parameters that `turned` or `packed` made."""

    layout: Layout
    features: int
    use_bias: bool
    dtype: jnp.dtype

    def __call__(self, x_ND: jax.Array, wanted_N: jax.Array | None) -> jax.Array:
        kernel = self.get_variable("params", "kernel")
        if self.layout == "packed":
            y_NF = multiply(x_ND, kernel, self.features, wanted_N).astype(self.dtype)
        else:
            y_NF = weights_on_the_left(kernel.astype(self.dtype), x_ND.astype(self.dtype))
        if self.use_bias:
            y_NF = y_NF + self.get_variable("params", "bias").astype(self.dtype)
        return y_NF


def products(
    config: ModelConfig,
    layout: Layout,
    x_ND: jax.Array,
    wanted_N: jax.Array | None,
    features: Mapping[str, int],
    bias: bool,
) -> list[jax.Array]:
    """One product [N, features] of `x_ND` for each name, inside a compact module. Rows that are not
    in `wanted_N` may be anything."""
    dtype = jnp.dtype(config.dtype)
    if layout == "plain":
        return [
            nn.Dense(
                size,
                use_bias=bias,
                name=name,
                dtype=dtype,
                param_dtype=jnp.dtype(config.param_dtype),
                kernel_init=nn.initializers.zeros,  # see init_params
            )(x_ND)
            for name, size in features.items()
        ]
    together = {"_".join(features): sum(features.values())} if layout == "packed" else features
    out = [
        LaidOutDense(layout, size, bias, dtype, name=name)(x_ND, wanted_N)
        for name, size in together.items()
    ]
    if layout == "turned":
        return out
    ends = itertools.accumulate(features.values())
    return jnp.split(out[0], list(ends)[:-1], axis=-1)


def weights_on_the_left(weights_FD: jax.Array, x_ND: jax.Array, dtype=None) -> jax.Array:
    """x @ weights.T, [N, F]."""
    dims = (((1,), (1,)), ((), ()))
    y_FN = jax.lax.dot_general(weights_FD, x_ND, dims, preferred_element_type=dtype)
    # Without the barrier XLA would swap the operands back.
    return jax.lax.optimization_barrier(y_FN).T


@jax.jit
def turned(params: Params) -> Params:
    """Plain parameters with every kernel stored by output."""

    def turn(path, x):
        return x.T if path[-1].key == "kernel" else x

    return jax.tree_util.tree_map_with_path(turn, params)


@functools.partial(jax.jit, static_argnames="dtype")
def packed(params: Params, dtype: str) -> Params:
    """Plain parameters with packed kernels of a type. A tied model's table is there twice: as it
    is, to look tokens up, and packed, to multiply with."""
    out = {}
    for name, entries in params.items():
        if name.startswith("layers_"):
            entries = {part: one for part, one in entries.items() if "kernel" not in one}
            for group in (*TOGETHER, ("o",), ("down",)):
                parts = [params[name][part] for part in group]
                entries["_".join(group)] = {
                    key: jnp.concatenate([part[key] for part in parts], axis=-1) for key in parts[0]
                }
            entries = jax.tree_util.tree_map_with_path(
                lambda path, x: pack(x, dtype) if path[-1].key == "kernel" else x, entries
            )
        out[name] = entries
    table_VD = params["embed"]["embedding"]
    kernel_DV = params["unembed"]["kernel"] if "unembed" in params else table_VD.T
    out["unembed"] = {"kernel": pack(kernel_DV, dtype)}
    if table_VD.dtype == jnp.bfloat16:
        out["embed"] = {"embedding": bits(table_VD)}
    return out
