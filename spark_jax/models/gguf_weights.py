"""Models in GGUF files (the format of llama.cpp): shape, weights and tokenizer in one file.

Quantised tensors are dequantised to `param_dtype` once, when they are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from spark_jax.models.config import ModelConfig
from spark_jax.models.tokenizer import bpe_from_vocabulary
from spark_jax.models.transformer import Params
from spark_jax.models.weights import build_params
from spark_jax.ops.rope import Llama3Scaling, inverse_frequencies
from spark_jax.types import UserError

CONTROL_TOKEN = 3  # tokenizer.ggml.token_type of turn marks and the like
USER_DEFINED_TOKEN = 4  # matched as a whole inside text, such as <think>

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


class GGUFModel(NamedTuple):
    """What one file holds."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer


def gguf_name(hf_name: str) -> str:
    """The GGUF name of a tensor with a Hugging Face name."""
    if hf_name in NAMES:
        return NAMES[hf_name]
    _, _, layer, rest = hf_name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{LAYER_NAMES[module]}.{kind}"


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undoes the row order of q and k in llama GGUF files.

    llama.cpp rotates neighbouring channels (2c, 2c + 1), Hugging Face and this project channels
    (c, c + C/2); its converter reorders the rows of each head of the llama family.
    """
    rows = weight.shape[0] // heads
    split = weight.reshape(heads, rows // 2, 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


def load_gguf(
    file: str | Path, dtype: str = "float32", param_dtype: str = "float32", shardings_of=None
) -> GGUFModel:
    """Reads a llama, qwen2 or qwen3 model with a byte-level tokenizer.

    Args:
      file: the .gguf file.
      dtype: compute type. param_dtype: type of the parameters.
      shardings_of: function from ModelConfig to the shardings of its parameters, or None.
    Raises:
      UserError when the file is truncated, of another family, or has another tokenizer.
    """
    try:
        import gguf
    except ImportError as error:
        raise UserError(
            "reading a GGUF file needs the gguf package; install it with `pip install gguf`."
        ) from error
    try:
        reader = gguf.GGUFReader(str(file))
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise UserError(
            f"{file} is truncated or no GGUF file ({error}); download it again."
        ) from error
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def field(name: str, default: Any = None) -> Any:
        found = reader.fields.get(name)
        return default if found is None else found.contents()

    config = _config(field, tensors, str(file), dtype, param_dtype)
    permuted = field("general.architecture") == "llama"

    def read(name: str) -> np.ndarray:
        tensor = tensors.get(gguf_name(name))
        if tensor is None:
            raise UserError(
                f"{file} lacks tensor {gguf_name(name)}; use a GGUF file of a whole model."
            )
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if permuted and ".q_proj." in name:
            return unpermute(weight, config.heads)
        if permuted and ".k_proj." in name:
            return unpermute(weight, config.kv_heads)
        return weight

    shardings = None if shardings_of is None else shardings_of(config)
    tokenizer = _tokenizer(field, str(file))
    return GGUFModel(config, build_params(config, read, str(file), shardings), tokenizer)


def _config(field, tensors, file: str, dtype: str, param_dtype: str) -> ModelConfig:
    family = field("general.architecture")
    if family not in ("llama", "qwen2", "qwen3"):
        raise UserError(
            f"{file} holds a model of architecture {family!r}; llama, qwen2 and qwen3 can be "
            "loaded."
        )
    names = (
        "block_count embedding_length feed_forward_length attention.head_count "
        "attention.layer_norm_rms_epsilon"
    ).split()
    missing = [name for name in names if field(f"{family}.{name}") is None]
    if missing or "token_embd.weight" not in tensors:
        what = f"{family}.{missing[0]}" if missing else "token_embd.weight"
        raise UserError(f"{file} lacks {what}; use a GGUF file of a whole model.")
    heads = int(field(f"{family}.attention.head_count"))
    width = int(field(f"{family}.embedding_length"))
    head_dim = int(field(f"{family}.attention.key_length", width // heads))
    theta = float(field(f"{family}.rope.freq_base", 10_000.0))
    return ModelConfig(
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        layers=int(field(f"{family}.block_count")),
        width=width,
        heads=heads,
        kv_heads=int(field(f"{family}.attention.head_count_kv", heads)),
        head_dim=head_dim,
        feed_forward=int(field(f"{family}.feed_forward_length")),
        rope_theta=theta,
        rope_scaling=_scaling(field, family, tensors, head_dim, theta, file),
        norm_eps=float(np.float32(field(f"{family}.attention.layer_norm_rms_epsilon"))),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tied="output.weight" not in tensors,
        context=int(field(f"{family}.context_length", ModelConfig.context)),
        dtype=dtype,
        param_dtype=param_dtype,
    )


def _scaling(field, family, tensors, head_dim, theta, file) -> Llama3Scaling | None:
    # Llama 3.1 files hold the divisor of each frequency instead of the four numbers behind them;
    # all published models share three of the four.
    if field(f"{family}.rope.scaling.type", "none") not in ("none", "default"):
        raise UserError(
            f"{file} asks for rotary scaling of type {field(f'{family}.rope.scaling.type')!r}; "
            "models with no scaling or with that of Llama 3 can be loaded."
        )
    if "rope_freqs.weight" not in tensors:
        return None
    divisors = np.asarray(tensors["rope_freqs.weight"].data, np.float32).reshape(-1)
    scaling = Llama3Scaling(factor=float(divisors.max()))
    ours = inverse_frequencies(head_dim, theta) / inverse_frequencies(head_dim, theta, scaling)
    if ours.shape != divisors.shape or not np.allclose(ours, divisors, rtol=1e-3):
        raise UserError(
            f"{file} has rotary factors that are not those of Llama 3; use the safetensors "
            "weights of the model."
        )
    return scaling


def _tokenizer(field, file: str) -> Tokenizer:
    model, cut = field("tokenizer.ggml.model"), field("tokenizer.ggml.pre", "")
    if model != "gpt2" or cut not in ("smollm", "qwen2", "llama-bpe"):
        raise UserError(
            f"{file} has a tokenizer of type {model!r} with pre-tokenizer {cut!r}; byte-level "
            "ones (gpt2) of type smollm, qwen2 or llama-bpe can be read."
        )
    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    special = [i for i, kind in enumerate(kinds) if kind == CONTROL_TOKEN]
    tags = [i for i, kind in enumerate(kinds) if kind == USER_DEFINED_TOKEN]
    return bpe_from_vocabulary(tokens, field("tokenizer.ggml.merges"), special, tags, cut)
