"""The weights that a benchmark runs with."""

from __future__ import annotations

import dataclasses

import jax

from spark_jax.models.config import ModelConfig
from spark_jax.models.presets import FROM_SCRATCH, Model, load_model
from spark_jax.models.transformer import init_params
from spark_jax.types import UserError

# `random:NAME`: the shape of a model that need not be downloaded to be timed.
SHAPES = {
    "smollm2": ModelConfig(
        vocab_size=49152, layers=30, width=576, heads=9, kv_heads=3, head_dim=64,
        feed_forward=1536, rope_theta=100_000.0,
    ),
    "qwen1.5b": ModelConfig(
        vocab_size=151936, layers=28, width=1536, heads=12, kv_heads=2, head_dim=128,
        feed_forward=8960, rope_theta=1_000_000.0, norm_eps=1e-6, qkv_bias=True,
    ),
    "qwen7b": ModelConfig(
        vocab_size=152064, layers=28, width=3584, heads=28, kv_heads=4, head_dim=128,
        feed_forward=18944, rope_theta=1_000_000.0, norm_eps=1e-6, qkv_bias=True, tied=False,
    ),
}  # fmt: skip


def load_benchmark_model(name: str, dtype: str) -> Model:
    """The model of a preset; `tiny`, `nano` and `random:NAME` with random weights (tiny and nano
    with 1,107 tokens), and then without a tokenizer.

    Raises UserError for a name that there is not.
    """
    if name in FROM_SCRATCH:
        config = FROM_SCRATCH[name](1107, dtype, dtype)
    elif name.startswith("random:"):
        shape = name.removeprefix("random:")
        if shape not in SHAPES:
            raise UserError(f"--model={name} is unknown; random:NAME has {', '.join(SHAPES)}.")
        config = dataclasses.replace(SHAPES[shape], dtype=dtype, param_dtype=dtype)
    else:
        return load_model(name, dtype=dtype, param_dtype=dtype)
    return Model(config, init_params(config, jax.random.key(0)), None)
