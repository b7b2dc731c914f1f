"""The decoder for the C++ kernels: the same function as models/transformer.py over packed weights.

A layer is five calls: four products (ops/cpu_products.py), which do norms, gates and the stream
themselves, and attention (ops/cpu_attention.py), which turns and keeps what one product made. The
stream between them is float32. For one CPU, and for any number of rows; the packed weights are a
copy, there while a rollout lasts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from spark_jax.models.config import ModelConfig
from spark_jax.models.layouts import Params
from spark_jax.ops.bits import bits, numbers
from spark_jax.ops.cpu_attention import Heads
from spark_jax.ops.cpu_products import Norm, multiply, pack
from spark_jax.ops.rope import rope_tables

AttendHeads = Callable[[Heads, Any], tuple[jax.Array, Any]]
TOGETHER = (("q", "k", "v"), ("gate", "up"), ("o",), ("down",))  # products that are one kernel


@functools.partial(jax.jit, static_argnames="dtype")
def packed(params: Params, dtype: str) -> Params:
    """Plain parameters with packed kernels of a type, those of one input side by side. A tied
    model's table is there twice: as it is, to look tokens up, and packed, to multiply with."""
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)  # what is not a kernel
    out = {"final_norm": wide["final_norm"]}
    for name in (name for name in params if name.startswith("layers_")):
        layer, parts = params[name], wide[name]
        out[name] = {norm: parts[norm] for norm in ("attention_norm", "mlp_norm")}
        if "q_norm" in layer:
            out[name]["head_norms"] = jnp.stack([parts[n]["scale"] for n in ("q_norm", "k_norm")])
        for group in TOGETHER:
            kernel_DF = jnp.concatenate([layer[part]["kernel"] for part in group], axis=-1)
            entry = {"kernel": pack(kernel_DF, dtype)}
            if "bias" in layer[group[0]]:
                entry["bias"] = jnp.concatenate([parts[part]["bias"] for part in group])
            out[name]["_".join(group)] = entry
    table_VD = params["embed"]["embedding"]
    kernel_DV = params["unembed"]["kernel"] if "unembed" in params else table_VD.T
    out["unembed"] = {"kernel": pack(kernel_DV, dtype)}
    out["embed"] = {"embedding": bits(table_VD) if table_VD.dtype == jnp.bfloat16 else table_VD}
    return out


def forward_packed(
    params: Params,
    config: ModelConfig,
    tokens_N: jax.Array,
    position_N: jax.Array,
    attend: AttendHeads,
    kv: Sequence[Any],
    wanted_N: jax.Array | None = None,
) -> tuple[jax.Array, tuple[Any, ...]]:
    """Hidden states [N, D] float32, before the final norm, and new `kv`.

    Args:
      params: of `packed`.
      config, tokens_N, position_N: as in `forward`.
      kv: one pytree per layer for `attend`.
      attend: `attend(heads, kv_layer) -> (out_NF, kv_layer)`, F = H C.
      wanted_N: tokens whose states are wanted (default: all). Those of others may be anything, and
        their products are left out.
    """
    c = config
    x_ND = numbers(params["embed"]["embedding"][tokens_N]).astype(jnp.float32)
    cos, sin = rope_tables(position_N, c.head_dim, c.rope_theta, c.rope_scaling)
    new_kv = []
    for i, kv_layer in zip(range(c.layers), kv, strict=True):
        entries = params[f"layers_{i}"]
        product = functools.partial(_product, c, entries, wanted_N)
        heads = (c.heads + 2 * c.kv_heads) * c.head_dim
        bias = entries["q_k_v"].get("bias")
        qkv_NF = product("q_k_v", x_ND, heads, "attention_norm", plus=bias)
        norms_2C = entries.get("head_norms", jnp.zeros(0))
        out_NF, kv_layer = attend(Heads(qkv_NF, cos, sin, norms_2C, c.norm_eps, c.heads), kv_layer)
        x_ND = product("o", out_NF, c.width, plus=x_ND)
        gate_up_NF = product("gate_up", x_ND, 2 * c.feed_forward, "mlp_norm")
        x_ND = product("down", gate_up_NF, c.width, gated=True, plus=x_ND)
        new_kv.append(kv_layer)
    return x_ND, tuple(new_kv)


def _product(config: ModelConfig, entries, wanted_N, name, x_ND, features, norm=None, **more):
    """The product `name` of a layer behind its norm `norm`; `more` as `multiply` has it."""
    if norm is not None:
        norm = Norm(entries[norm]["scale"], config.norm_eps)
    return multiply(x_ND, entries[name]["kernel"], features, wanted_N, norm, **more)


def unembed_packed(
    params: Params, config: ModelConfig, x_MD: jax.Array, wanted_M: jax.Array | None = None
) -> jax.Array:
    """Logits [M, V] of what `forward_packed` returns, float32."""
    norm = Norm(params["final_norm"]["scale"], config.norm_eps)
    return multiply(x_MD, params["unembed"]["kernel"], config.vocab_size, wanted_M, norm)
