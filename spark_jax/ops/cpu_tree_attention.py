"""Attention over packed trees and its gradient as C++ for CPUs (cpu_tree_attention.cc)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def native_tree_attention(
    q_NHC: jax.Array, k_NKC: jax.Array, v_NKC: jax.Array, end_N: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`dense_tree_attention` (ops/tree_attention.py), computed in float32; out_NHC has the type of
    the queries. `cpu_kernels.load` has to have returned "". Raises TypeError for float64."""
    if q_NHC.dtype == jnp.float64:
        raise TypeError("the C++ kernels compute in float32; use the blockwise backend for float64")
    q, k, v = (x.astype(jnp.float32) for x in (q_NHC, k_NKC, v_NKC))
    out, lse = _attend(q, k, v, jnp.asarray(end_N, jnp.int32))
    return out.astype(q_NHC.dtype), lse


def _like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, jnp.float32)


@jax.custom_vjp
def _attend(q, k, v, end_N):
    lse = jax.ShapeDtypeStruct(q.shape[:-1], jnp.float32)
    return jax.ffi.ffi_call("spark_tree_forward", (_like(q), lse))(q, k, v, end_N)


def _forward(q, k, v, end_N):
    out, lse = _attend(q, k, v, end_N)
    return (out, lse), (q, k, v, end_N, out, lse)


def _backward(saved, cotangents):
    q, k, v, end_N, out, lse = saved
    call = jax.ffi.ffi_call("spark_tree_backward", (_like(q), _like(k), _like(v)))
    no_gradient = np.zeros(end_N.shape, jax.dtypes.float0)  # of whole numbers
    return *call(q, k, v, end_N, out, lse, *cotangents), no_gradient


_attend.defvjp(_forward, _backward)
