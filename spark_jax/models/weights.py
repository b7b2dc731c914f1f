"""Weights in Hugging Face folders: config.json and one or several safetensors files.

Tensors are read, converted and placed one at a time, so the peak of host memory is the model as
it is held plus one tensor.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from spark_jax.models.config import ModelConfig, from_hf_config, to_hf_config
from spark_jax.models.transformer import Params
from spark_jax.types import UserError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class TensorSpec(NamedTuple):
    """One tensor of a checkpoint and its place in the parameter tree."""

    path: tuple[str, ...]  # place in the parameter tree
    shape: tuple[int, ...]  # as stored in the checkpoint
    transposed: bool  # checkpoints store [out, in], kernels here are [in, out]


def tensor_specs(config: ModelConfig) -> dict[str, TensorSpec]:
    """Hugging Face name -> TensorSpec, for every parameter of `config`."""
    c = config
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    specs = {
        "model.embed_tokens.weight": TensorSpec(
            ("embed", "embedding"), (c.vocab_size, c.width), False
        ),
        "model.norm.weight": TensorSpec(("final_norm", "scale"), (c.width,), False),
    }
    if not c.tied:
        specs["lm_head.weight"] = TensorSpec(("unembed", "kernel"), (c.vocab_size, c.width), True)
    kernels = {
        "self_attn.q_proj": ("q", q, c.width),
        "self_attn.k_proj": ("k", kv, c.width),
        "self_attn.v_proj": ("v", kv, c.width),
        "self_attn.o_proj": ("o", c.width, q),
        "mlp.gate_proj": ("gate", c.feed_forward, c.width),
        "mlp.up_proj": ("up", c.feed_forward, c.width),
        "mlp.down_proj": ("down", c.width, c.feed_forward),
    }
    norms = {
        "input_layernorm": ("attention_norm", c.width),
        "post_attention_layernorm": ("mlp_norm", c.width),
    }
    if c.qk_norm:
        norms["self_attn.q_norm"] = ("q_norm", c.head_dim)
        norms["self_attn.k_norm"] = ("k_norm", c.head_dim)
    for i in range(c.layers):
        layer, prefix = f"layers_{i}", f"model.layers.{i}."
        for name, (ours, rows, columns) in kernels.items():
            specs[f"{prefix}{name}.weight"] = TensorSpec(
                (layer, ours, "kernel"), (rows, columns), True
            )
            if c.qkv_bias and ours in ("q", "k", "v"):
                specs[f"{prefix}{name}.bias"] = TensorSpec((layer, ours, "bias"), (rows,), False)
        for name, (ours, width) in norms.items():
            specs[f"{prefix}{name}.weight"] = TensorSpec((layer, ours, "scale"), (width,), False)
    return specs


def build_params(
    config: ModelConfig,
    read: Callable[[str], np.ndarray],
    source: str,
    shardings: Params | None = None,
) -> Params:
    """The parameter tree, one tensor after the other.

    Args:
      config: shape of the model; `config.param_dtype` is what tensors are converted to.
      read: returns the tensor of a Hugging Face name in the checkpoint's layout.
      source: what to call the checkpoint in errors.
      shardings: tree of shardings like the parameters, or None for the default device.
    Raises:
      UserError when a tensor has another shape or is not of floating point.
    """
    dtype = np.dtype(getattr(ml_dtypes, config.param_dtype, config.param_dtype))
    params: dict[str, Any] = {}
    for name, spec in tensor_specs(config).items():
        tensor = read(name)
        if tensor.shape != spec.shape:
            raise UserError(
                f"{source}: tensor {name} has shape {tensor.shape}, its config asks for "
                f"{spec.shape}; use weights and config of the same model."
            )
        if tensor.dtype.kind not in "fV":  # V: the kind of bfloat16
            raise UserError(
                f"{source}: tensor {name} is stored as {tensor.dtype}; use weights in float32, "
                "float16 or bfloat16 that are not quantised."
            )
        tensor = tensor.astype(dtype, copy=False)
        tensor = np.ascontiguousarray(tensor.T if spec.transposed else tensor)
        sharding, node = shardings, params
        for key in spec.path[:-1]:
            node = node.setdefault(key, {})
            sharding = None if sharding is None else sharding[key]
        sharding = None if sharding is None else sharding[spec.path[-1]]
        node[spec.path[-1]] = jax.device_put(tensor, sharding)
    return params


def read_config(folder: str | Path, dtype: str, param_dtype: str) -> ModelConfig:
    """The shape of the model in a Hugging Face folder."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise UserError(f"{folder} has no config.json; give the folder of a whole model.")
    try:
        hf = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); copy it again from the model.") from error
    return from_hf_config(hf, dtype, param_dtype)


def _file_of_tensor(folder: Path) -> dict[str, Path] | Path:
    """The one weights file, or the file of each tensor of a sharded checkpoint."""
    if (folder / SINGLE_FILE).is_file():
        return folder / SINGLE_FILE
    index = folder / INDEX_FILE
    if not index.is_file():
        raise UserError(
            f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}; give a folder with "
            "safetensors weights."
        )
    try:
        files = {n: folder / f for n, f in json.loads(index.read_text())["weight_map"].items()}
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{index} is broken ({error}); copy it again from the model.") from error
    missing = sorted({file.name for file in files.values() if not file.is_file()})
    if missing:
        raise UserError(
            f"{folder} lacks {missing[0]}, one of {len(missing)} missing weight file(s) that its "
            "index names; finish the download."
        )
    return files


@contextlib.contextmanager
def _reader(folder: Path) -> Iterator[Callable[[str], np.ndarray]]:
    files = _file_of_tensor(folder)
    with contextlib.ExitStack() as stack:
        opened: dict[Path, Any] = {}

        def open_file(file: Path):
            if file not in opened:
                try:
                    handle = safetensors.safe_open(str(file), framework="numpy")
                except (safetensors.SafetensorError, OSError) as error:
                    raise UserError(
                        f"{file} is truncated or no safetensors file ({error}); download it again."
                    ) from error
                opened[file] = stack.enter_context(handle)
            return opened[file]

        def read(name: str) -> np.ndarray:
            file = files.get(name) if isinstance(files, dict) else files
            if file is None or name not in open_file(file).keys():
                raise UserError(
                    f"{folder}: the weights lack tensor {name}; use weights and config of the "
                    "same model."
                )
            try:
                return open_file(file).get_tensor(name)
            except (TypeError, safetensors.SafetensorError) as error:
                raise UserError(
                    f"{file}: tensor {name} cannot be read ({error}); use weights in float32, "
                    "float16 or bfloat16."
                ) from error

        for file in sorted(set(files.values())) if isinstance(files, dict) else [files]:
            open_file(file)  # a truncated file is reported before anything is loaded
        yield read


def load_safetensors(
    folder: str | Path, config: ModelConfig, shardings: Params | None = None
) -> Params:
    """Parameters from `model.safetensors` or the files of its index in `folder`.

    Raises UserError for a missing or truncated file, a missing tensor or a wrong shape.
    """
    with _reader(Path(folder)) as read:
        return build_params(config, read, str(folder), shardings)


def hf_tensors(params: Params, config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """(Hugging Face name, tensor) of every parameter, in Hugging Face's order of axes."""
    for name, spec in tensor_specs(config).items():
        node = params
        for key in spec.path:
            node = node[key]
        tensor = np.asarray(node)
        yield name, np.ascontiguousarray(tensor.T if spec.transposed else tensor)


def save_safetensors(
    params: Params,
    config: ModelConfig,
    folder: str | Path,
    tokens: Mapping[str, int | None] | None = None,
) -> None:
    """Writes config.json and model.safetensors, which transformers and this project can load.
    `tokens`: more fields of config.json, such as eos_token_id, at which `generate` stops."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(hf_tensors(params, config))
    partial = folder / (SINGLE_FILE + ".partial")  # a killed run leaves no half-written weights
    safetensors.numpy.save_file(tensors, str(partial), metadata={"format": "pt"})
    partial.rename(folder / SINGLE_FILE)
    described = {**to_hf_config(config), **(tokens or {})}
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
