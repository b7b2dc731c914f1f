"""Orders in which the sampler may hold the weights, and the products that go with each.

plain: as they are trained and stored, kernels [D, F].
turned: kernels [F, D]. On a CPU XLA multiplies few rows faster with the weights on the left. A
copy, there while a rollout lasts.

Those of the C++ kernels are in models/packed.py.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from spark_jax.models.config import ModelConfig

Params = Any  # nested dictionaries of arrays
Layout = Literal["plain", "turned"]

# Up to so many rows XLA is faster with turned weights: by a fifth in the layers, by a third for the
# table of a tied model (docs/performance.md).
FEW_ROWS = 32


class TurnedDense(nn.Module):
    """`nn.Dense` over parameters that `turned` made."""

    use_bias: bool
    dtype: jnp.dtype

    def __call__(self, x_ND: jax.Array) -> jax.Array:
        kernel_FD = self.get_variable("params", "kernel").astype(self.dtype)
        y_NF = weights_on_the_left(kernel_FD, x_ND.astype(self.dtype))
        if self.use_bias:
            y_NF = y_NF + self.get_variable("params", "bias").astype(self.dtype)
        return y_NF


def dense(
    config: ModelConfig, layout: Layout, name: str, features: int, bias: bool = False
) -> nn.Module:
    """A layer of products, inside a compact module."""
    dtype = jnp.dtype(config.dtype)
    if layout == "turned":
        return TurnedDense(bias, dtype, name=name)
    return nn.Dense(
        features,
        use_bias=bias,
        name=name,
        dtype=dtype,
        param_dtype=jnp.dtype(config.param_dtype),
        kernel_init=nn.initializers.zeros,  # see init_params
    )


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
