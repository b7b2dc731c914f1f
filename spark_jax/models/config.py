"""The shape of a decoder: everything that tells Llama, Qwen2 and Qwen3 models apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from spark_jax.ops.rope import Llama3Scaling
from spark_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of one decoder. Widths are in channels."""

    vocab_size: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Scaling | None = None
    norm_eps: float = 1e-5
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3: RMSNorm over each head of q and k, before the rotation
    tied: bool = True  # the vocabulary projection is the embedding
    context: int = 8192  # tokens that the weights are meant for at most: for those who load them
    dtype: str = "float32"  # matrix products are computed in this type
    param_dtype: str = "float32"  # parameters are held in this type


def tiny_config(
    vocab_size: int, dtype: str = "float32", param_dtype: str = "float32"
) -> ModelConfig:
    """The embedded default: 0.7 million parameters with 1,110 tokens, trained from scratch. Sized
    for two CPU cores: twice the width learns no more of the default tasks in the same time."""
    return ModelConfig(
        vocab_size=vocab_size,
        layers=3,
        width=128,
        heads=4,
        kv_heads=2,
        head_dim=32,
        feed_forward=384,
        qk_norm=True,  # and with it a learning rate at which copying from the prompt comes early
        dtype=dtype,
        param_dtype=param_dtype,
    )


def nano_config(
    vocab_size: int, dtype: str = "float32", param_dtype: str = "float32"
) -> ModelConfig:
    """For tests and the toy environment: compiles and runs in seconds, learns little."""
    return dataclasses.replace(
        tiny_config(vocab_size, dtype, param_dtype),
        layers=2,
        width=32,
        heads=2,
        kv_heads=1,
        head_dim=16,
        feed_forward=64,
    )


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters of a model of this shape."""
    c = config
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    layer = c.width * (2 * q + 2 * kv + 3 * c.feed_forward + 2)
    layer += (q + 2 * kv if c.qkv_bias else 0) + (2 * c.head_dim if c.qk_norm else 0)
    tables = 1 if c.tied else 2
    return c.layers * layer + tables * c.vocab_size * c.width + c.width


def _rope_from_hf(hf: Mapping[str, Any]) -> tuple[float, Llama3Scaling | None]:
    # Older files keep `rope_theta` beside `rope_scaling`, newer ones both in `rope_parameters`.
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or hf.get("rope_theta") or 10_000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "llama3":
        names = "factor low_freq_factor high_freq_factor original_max_position_embeddings".split()
        missing = [name for name in names if rope.get(name) is None]
        if missing:
            raise UserError(
                f"config.json asks for rotary scaling of type 'llama3' and lacks its "
                f"{', '.join(missing)}; use the model's original file."
            )
        return theta, Llama3Scaling(
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_max_position=int(rope["original_max_position_embeddings"]),
        )
    raise UserError(
        f"config.json asks for rotary scaling of type {kind!r}; "
        "models with no scaling or with 'llama3' scaling can be loaded."
    )


def from_hf_config(
    hf: Mapping[str, Any], dtype: str = "float32", param_dtype: str = "float32"
) -> ModelConfig:
    """The shape described by a Hugging Face config.json (llama, qwen2 or qwen3).

    Raises UserError for other families and for switches that this decoder does not have.
    """
    family = hf.get("model_type")
    if family not in ("llama", "qwen2", "qwen3"):
        raise UserError(
            f"config.json is of model_type {family!r}; models of type llama, qwen2 and qwen3 "
            "can be loaded."
        )
    missing = [
        key
        for key in (
            "vocab_size num_hidden_layers hidden_size num_attention_heads intermediate_size"
        ).split()
        if hf.get(key) is None
    ]
    if missing:
        raise UserError(f"config.json lacks {', '.join(missing)}; use the model's original file.")
    unsupported = {
        "attention_bias": bool(hf.get("attention_bias", False)),
        "mlp_bias": bool(hf.get("mlp_bias", False)),
        "use_sliding_window": bool(hf.get("use_sliding_window", False)),
        "hidden_act": hf.get("hidden_act", "silu") != "silu",
    }
    for key, is_set in unsupported.items():
        if is_set:
            raise UserError(
                f"config.json sets {key} to {hf[key]!r}, which this decoder does not have; "
                "use a model without it."
            )
    theta, scaling = _rope_from_hf(hf)
    heads = int(hf["num_attention_heads"])
    return ModelConfig(
        vocab_size=int(hf["vocab_size"]),
        layers=int(hf["num_hidden_layers"]),
        width=int(hf["hidden_size"]),
        heads=heads,
        kv_heads=int(hf.get("num_key_value_heads") or heads),
        head_dim=int(hf.get("head_dim") or hf["hidden_size"] // heads),
        feed_forward=int(hf["intermediate_size"]),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=float(hf.get("rms_norm_eps", 1e-6)),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tied=bool(hf.get("tie_word_embeddings", False)),
        context=int(hf.get("max_position_embeddings") or ModelConfig.context),
        dtype=dtype,
        param_dtype=param_dtype,
    )


def to_hf_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json that describes `config`, readable by transformers and `from_hf_config`."""
    family = "qwen2" if config.qkv_bias else "qwen3" if config.qk_norm else "llama"
    if config.qkv_bias and config.qk_norm:
        raise UserError("no known model family has both qkv_bias and qk_norm; choose one.")
    names = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    hf: dict[str, Any] = {
        "architectures": [names[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.feed_forward,
        "max_position_embeddings": config.context,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "torch_dtype": config.param_dtype,
    }
    if config.rope_scaling is not None:
        hf["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_max_position,
        }
    return hf
