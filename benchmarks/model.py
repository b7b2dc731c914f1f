"""The weights that a benchmark runs with."""

from __future__ import annotations

import jax

from spark_jax.models.presets import FROM_SCRATCH, Model, load_model
from spark_jax.models.transformer import init_params


def load_benchmark_model(name: str, dtype: str) -> Model:
    """The model of a preset; `tiny` and `nano` with random weights and 1,107 tokens."""
    if name in FROM_SCRATCH:
        config = FROM_SCRATCH[name](1107, dtype, dtype)
        return Model(config, init_params(config, jax.random.key(0)), None)
    return load_model(name, dtype=dtype, param_dtype=dtype)
