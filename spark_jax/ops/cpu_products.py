"""Products with packed weights as C++ for CPUs (cpu_products.cc)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LANES = 16  # outputs that stand side by side
_PAD = 32  # the inputs of bfloat16 weights are padded to a multiple of it


def packed_shape(inputs: int, outputs: int, dtype) -> tuple[int, ...]:
    """Shape of `pack` of a kernel [inputs, outputs]: [F/16, D, 16], or [F/16, D/2, 16, 2] for
    bfloat16, with D and F rounded up."""
    blocks = -(-outputs // LANES)
    if jnp.dtype(dtype) == jnp.float32:
        return blocks, inputs, LANES
    return blocks, -(-inputs // _PAD) * _PAD // 2, LANES, 2


def pack(kernel_DF: jax.Array, dtype) -> jax.Array:
    """A kernel in the order in which `multiply` reads it, as float32 or bfloat16. A copy."""
    inputs, outputs = kernel_DF.shape
    shape = packed_shape(inputs, outputs, dtype)
    deep = 1 if len(shape) == 3 else 2
    padding = ((0, shape[1] * deep - inputs), (0, shape[0] * LANES - outputs))
    x = jnp.pad(kernel_DF.astype(dtype), padding).reshape(shape[1], deep, shape[0], LANES)
    return x.transpose(2, 0, 3, 1).reshape(shape)


class Norm(NamedTuple):
    """An RMS norm: x / sqrt(mean(x²) + eps) * scale."""

    scale_D: jax.Array
    eps: float


def multiply(
    x_ND: jax.Array,
    packed: jax.Array,
    outputs: int,
    wanted_N: jax.Array | None = None,
    norm: Norm | None = None,
    gated: bool = False,
    plus: jax.Array | None = None,
    best: int = 2,
) -> jax.Array:
    """x @ kernel [N, outputs], float32, of a kernel that was packed. Beside bfloat16 weights x is
    rounded to bfloat16; sums are float32 either way. `cpu_kernels.load` has to have returned "".

    Args:
      wanted_N: rows that matter (default: all); the others are 0, and cost nothing.
      norm: of the rows of x, first; not with `gated`.
      gated: x is [N, 2 D], and silu(first half) * second half is multiplied.
      plus: added to the result, [N, outputs] or [outputs].
      best: instructions for bfloat16 that may be used where the processor has them; 2 tile
        registers, 1 dot products, 0 neither.
    """
    if gated and (norm or x_ND.shape[1] % 2):
        raise ValueError(f"a gate takes two halves and no norm, not {x_ND.shape} and {norm}")
    inputs = x_ND.shape[1] // (2 if gated else 1)
    wanted = packed_shape(inputs, outputs, packed.dtype)
    if packed.shape != wanted:
        raise ValueError(f"packed weights are of shape {packed.shape}, not {wanted}")
    rows, nothing = x_ND.shape[0], jnp.zeros(0, jnp.float32)
    scale_D, eps = (nothing, 0.0) if norm is None else norm
    plus = nothing if plus is None else plus
    if scale_D.shape not in ((0,), (inputs,)) or plus.shape not in (
        (0,), (outputs,), (rows, outputs),
    ):  # fmt: skip
        raise ValueError(f"norm {scale_D.shape} and plus {plus.shape} of {inputs} -> {outputs}")
    wanted_N = jnp.ones(rows, jnp.int32) if wanted_N is None else wanted_N.astype(jnp.int32)
    call = jax.ffi.ffi_call("spark_multiply", jax.ShapeDtypeStruct((rows, outputs), jnp.float32))
    x_ND, scale_D, plus = (x.astype(jnp.float32) for x in (x_ND, scale_D, plus))
    return call(
        x_ND, packed, wanted_N, scale_D, plus, best=np.int32(best), gated=gated, eps=np.float32(eps)
    )
