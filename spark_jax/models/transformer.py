"""One decoder for the Llama, Qwen2 and Qwen3 families, as pure functions over a Linen module.

The module only declares parameters; `init_params` fills them. Tokens are flattened to [N] whatever
they are (packed training rows, a prefill, one token of each decoding row); what may look at what
is decided by the caller's `attend`. The parameter tree:

    embed/embedding [V, D]
    layers_<i>/attention_norm/scale, mlp_norm/scale [D]
    layers_<i>/q/kernel [D, H*C], k/kernel, v/kernel [D, K*C], o/kernel [H*C, D]
    layers_<i>/{q,k,v}/bias (qkv_bias), {q,k}_norm/scale [C] (qk_norm)
    layers_<i>/gate/kernel, up/kernel [D, F], down/kernel [F, D]
    final_norm/scale [D]
    unembed/kernel [D, V] (absent when tied)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spark_jax.models.config import ModelConfig
from spark_jax.models.layouts import Layout, Params, dense, weights_on_the_left
from spark_jax.ops.recompute import recomputed
from spark_jax.ops.rope import rope_tables, rotate

Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]

INIT_SCALE = 0.02  # of GPT-2; residual outputs are scaled down by 1/sqrt(2 * layers)
DRAWN = ("kernel", "embedding")  # parameters drawn at random by `init_params`


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in float32 (arXiv 1910.07467)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param(
            "scale", nn.initializers.ones, (x.shape[-1],), jnp.dtype(self.config.param_dtype)
        )
        wide = x.astype(jnp.float32)
        inverse_rms = jax.lax.rsqrt(
            jnp.mean(wide * wide, axis=-1, keepdims=True) + self.config.norm_eps
        )
        return (wide * inverse_rms * scale.astype(jnp.float32)).astype(x.dtype)


class Embedding(nn.Module):
    """Rows of a [V, D] table. (`nn.Embed` would convert the whole table when types differ.)"""

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens_N: jax.Array) -> jax.Array:
        table_VD = self.param(
            "embedding",
            nn.initializers.zeros,
            (self.config.vocab_size, self.config.width),
            jnp.dtype(self.config.param_dtype),
        )
        return table_VD[tokens_N].astype(self.config.dtype)


class Unembedding(nn.Module):
    """Only declares the [D, V] kernel of an untied model; `unembed` applies it."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> None:
        shape = (self.config.width, self.config.vocab_size)
        self.param("kernel", nn.initializers.zeros, shape, jnp.dtype(self.config.param_dtype))


class Layer(nn.Module):
    """Attention and gated feed-forward, each behind a norm and added to the stream."""

    config: ModelConfig
    layout: Layout = "plain"

    @nn.compact
    def __call__(
        self,
        x_ND: jax.Array,
        cos: jax.Array,
        sin: jax.Array,
        kv: Any,
        attend: Attend,
    ) -> tuple[jax.Array, Any]:
        c = self.config
        product = functools.partial(dense, c, self.layout)

        h_ND = RMSNorm(c, name="attention_norm")(x_ND)
        q_NHC = product("q", c.heads * c.head_dim, c.qkv_bias)(h_ND)
        k_NKC = product("k", c.kv_heads * c.head_dim, c.qkv_bias)(h_ND)
        v_NKC = product("v", c.kv_heads * c.head_dim, c.qkv_bias)(h_ND)
        q_NHC = q_NHC.reshape(-1, c.heads, c.head_dim)
        k_NKC = k_NKC.reshape(-1, c.kv_heads, c.head_dim)
        v_NKC = v_NKC.reshape(-1, c.kv_heads, c.head_dim)
        if c.qk_norm:
            q_NHC = RMSNorm(c, name="q_norm")(q_NHC)
            k_NKC = RMSNorm(c, name="k_norm")(k_NKC)
        out_NHC, kv = attend(rotate(q_NHC, cos, sin), rotate(k_NKC, cos, sin), v_NKC, kv)
        out_ND = out_NHC.astype(x_ND.dtype).reshape(-1, c.heads * c.head_dim)
        x_ND = x_ND + product("o", c.width)(out_ND)

        h_ND = RMSNorm(c, name="mlp_norm")(x_ND)
        gate_NF = product("gate", c.feed_forward)(h_ND)
        up_NF = product("up", c.feed_forward)(h_ND)
        x_ND = x_ND + product("down", c.width)(nn.silu(gate_NF) * up_NF)
        return x_ND, kv


class Decoder(nn.Module):
    """Tokens to normed hidden states; see `forward`."""

    config: ModelConfig
    remat: bool = False
    layout: Layout = "plain"

    @nn.compact
    def __call__(
        self,
        tokens_N: jax.Array,
        position_N: jax.Array,
        attend: Attend,
        kv: Any,
    ) -> tuple[jax.Array, Any]:
        c = self.config
        x_ND = Embedding(c, name="embed")(tokens_N)
        cos, sin = rope_tables(position_N, c.head_dim, c.rope_theta, c.rope_scaling)
        new_kv = []
        for i in range(c.layers):
            kv_layer = None if kv is None else kv[i]
            if self.remat:
                x_ND = self._recomputed_layer(f"layers_{i}", x_ND, cos, sin, attend)
            else:
                layer = Layer(c, self.layout, name=f"layers_{i}")
                x_ND, kv_layer = layer(x_ND, cos, sin, kv_layer, attend)
            new_kv.append(kv_layer)
        hidden_ND = RMSNorm(c, name="final_norm")(x_ND)
        if not c.tied and self.layout == "plain":  # nobody initialises the others
            Unembedding(c, name="unembed")()
        return hidden_ND, None if kv is None else tuple(new_kv)

    def _recomputed_layer(self, name: str, x_ND, cos, sin, attend: Attend) -> jax.Array:
        """The layer `name`, which keeps only its input for the backward pass. No cache."""

        def run(params, x_ND):
            layer = Layer(self.config, parent=None)
            return layer.apply({"params": params}, x_ND, cos, sin, None, attend)[0]

        return recomputed(run)(self.variables["params"][name], x_ND)


def param_shapes(config: ModelConfig) -> Params:
    """The parameter tree as shapes and types, without allocating it."""
    one = jax.ShapeDtypeStruct((1,), jnp.int32)

    def declare(tokens_N):
        model, key = Decoder(config), jax.random.key(0)
        return model.init(key, tokens_N, tokens_N, lambda q, k, v, kv: (q, kv), None)["params"]

    return jax.eval_shape(declare, one)


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Fresh parameters: normal(0.02), residual outputs normal(0.02 / sqrt(2 * layers)), norms 1.

    All numbers are one draw that is cut into pieces: compiling a generator for each shape takes
    seconds on CPU.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(param_shapes(config))
    names = [tuple(entry.key for entry in path) for path, _ in leaves]
    sizes = [
        leaf.size if name[-1] in DRAWN else 0 for name, (_, leaf) in zip(names, leaves, strict=True)
    ]
    noise = INIT_SCALE * jax.random.normal(key, (sum(sizes),))
    pieces, start = [], 0
    for name, size, (_, leaf) in zip(names, sizes, leaves, strict=True):
        if size:
            scale = (2 * config.layers) ** -0.5 if name[-2] in ("o", "down") else 1.0
            piece = scale * noise[start : start + size].reshape(leaf.shape)
        else:
            piece = jnp.full(leaf.shape, 1.0 if name[-1] == "scale" else 0.0)
        pieces.append(piece.astype(leaf.dtype))
        start += size
    return jax.tree.unflatten(tree, pieces)


def forward(
    params: Params,
    config: ModelConfig,
    tokens_N: jax.Array,
    position_N: jax.Array,
    attend: Attend,
    kv: tuple[Any, ...] | None = None,
    remat: bool = False,
    layout: Layout = "plain",
) -> tuple[jax.Array, tuple[Any, ...] | None]:
    """Hidden states [N, D] (final norm applied, compute dtype) of flattened tokens, and new `kv`.

    Args:
      params: tree of `init_params`.
      config: its shape.
      tokens_N: token ids, int32.
      position_N: depth of each token on its path, from 0.
      attend: `attend(q_NHC, k_NKC, v_NKC, kv_layer) -> (out_NHC, kv_layer)`; q and k come
        normed and rotated, scaling by 1/sqrt(C) is up to `attend`.
      kv: one pytree per layer for `attend`, or None (then `attend` gets None).
      remat: recompute each layer in the backward pass instead of keeping its activations.
      layout: of `params` (models/layouts.py); only "plain" with `remat`.
    """
    return Decoder(config, remat, layout).apply(
        {"params": params}, tokens_N, position_N, attend, kv
    )


def unembed(
    params: Params, config: ModelConfig, hidden_MD: jax.Array, layout: Layout = "plain"
) -> jax.Array:
    """Logits [M, V], accumulated and returned in float32. `layout` as in `forward`."""
    dtype = jnp.dtype(config.dtype)
    hidden_MD = hidden_MD.astype(dtype)
    if config.tied:
        table_VD = params["embed"]["embedding"].astype(dtype)
    elif layout == "turned":
        table_VD = params["unembed"]["kernel"].astype(dtype)
    else:
        kernel_DV = params["unembed"]["kernel"].astype(dtype)
        return jnp.dot(hidden_MD, kernel_DV, preferred_element_type=jnp.float32)
    if layout == "turned":
        return weights_on_the_left(table_VD, hidden_MD, jnp.float32)
    dims = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(hidden_MD, table_VD, dims, preferred_element_type=jnp.float32)


def causal_attend(rows: int) -> Attend:
    """Plain causal attention over `rows` rows of equal length: the readable reference."""

    def attend(q_NHC, k_NKC, v_NKC, kv):
        heads, channels = q_NHC.shape[1:]
        kv_heads = k_NKC.shape[1]
        q_BTKGC = q_NHC.reshape(rows, -1, kv_heads, heads // kv_heads, channels)
        k_BTKC = k_NKC.reshape(rows, -1, kv_heads, channels)
        v_BTKC = v_NKC.reshape(rows, -1, kv_heads, channels)
        scores = jnp.einsum(
            "btkgc,bskc->bkgts", q_BTKGC, k_BTKC, preferred_element_type=jnp.float32
        )
        length = q_BTKGC.shape[1]
        visible_TT = jnp.tril(jnp.ones((length, length), bool))
        weights = jax.nn.softmax(jnp.where(visible_TT, scores / channels**0.5, -jnp.inf), axis=-1)
        out = jnp.einsum("bkgts,bskc->btkgc", weights.astype(v_BTKC.dtype), v_BTKC)
        return out.reshape(-1, heads, channels), kv

    return attend
