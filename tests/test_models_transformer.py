"""The decoder against transformers' PyTorch models, and its own contracts."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from make_golden import configs, torch_logits, torch_model
from native import needs_native

from spark_jax.cache.kv import init_kv
from spark_jax.models.config import (
    ModelConfig,
    from_hf_config,
    parameter_count,
    tiny_config,
    to_hf_config,
)
from spark_jax.models.layouts import turned
from spark_jax.models.packed import forward_packed, packed, unembed_packed
from spark_jax.models.transformer import (
    causal_attend,
    forward,
    init_params,
    param_shapes,
    unembed,
)
from spark_jax.models.weights import load_safetensors, read_config
from spark_jax.ops.cpu_attention import prefill_heads
from spark_jax.ops.rope import Llama3Scaling, inverse_frequencies
from spark_jax.types import UserError

GOLDEN = Path(__file__).parent / "golden"
SMALL = ModelConfig(
    vocab_size=50, layers=2, width=32, heads=4, kv_heads=2, head_dim=8, feed_forward=48, tied=False
)


init = jax.jit(init_params, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(1, 3))
def causal_logits(params, config, tokens_BT, layout="plain"):
    rows, length = tokens_BT.shape
    position_N = jnp.tile(jnp.arange(length), rows)
    attend = causal_attend(rows)
    token_N = tokens_BT.reshape(-1)
    hidden_ND, _ = forward(params, config, token_N, position_N, attend, layout=layout)
    return unembed(params, config, hidden_ND, layout).reshape(rows, length, -1)


@functools.partial(jax.jit, static_argnums=1)
def packed_logits(params, config, tokens_BT):
    """Each row in pages of its own, behind those of the one before."""
    (B, T), slots = tokens_BT.shape, 16
    pages = -(-T // slots)
    table_BW = jnp.arange(B * pages).reshape(B, pages)
    position_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    slot_N = (table_BW[:, :1] * slots + position_BT).reshape(-1)

    def attend(heads, kv):
        out_NF, _, kv = prefill_heads(heads, kv, table_BW, position_BT, slot_N)
        return out_NF, kv

    kv = init_kv(config, B * pages, slots, "float32", backend="native")
    token_N, position_N = tokens_BT.reshape(-1), position_BT.reshape(-1)
    x_ND, _ = forward_packed(params, config, token_N, position_N, attend, kv)
    return unembed_packed(params, config, x_ND).reshape(B, T, -1)


def golden_model(name, tmp_path):
    """Of transformers' model: what it was made of and gave; and the same parameters read by us."""
    golden = np.load(GOLDEN / f"{name}.npz")
    (tmp_path / "config.json").write_text(str(golden["config"]))
    weights = {
        key.removeprefix("weights/"): golden[key].astype(np.float32)
        for key in golden.files
        if key.startswith("weights/")
    }
    safetensors.numpy.save_file(weights, tmp_path / "model.safetensors")
    config = read_config(tmp_path, "float32", "float32")
    return golden, config, load_safetensors(tmp_path, config)


@pytest.mark.parametrize("name", ["llama", "llama3", "qwen2", "qwen3"])
def test_logits_equal_the_golden_ones(name, tmp_path):
    golden, config, params = golden_model(name, tmp_path)
    logits_BTV = causal_logits(params, config, golden["tokens"])
    assert np.abs(golden["logits"]).max() > 0.5
    np.testing.assert_allclose(logits_BTV, golden["logits"], rtol=0, atol=1e-4)
    turned_BTV = causal_logits(turned(params), config, golden["tokens"], "turned")
    np.testing.assert_allclose(turned_BTV, golden["logits"], rtol=0, atol=1e-4)
    assert sum(x.size for x in jax.tree.leaves(params)) == parameter_count(config)


@needs_native
@pytest.mark.parametrize("name", ["llama", "llama3", "qwen2", "qwen3"])
def test_logits_of_packed_weights_equal_the_golden_ones(name, tmp_path):
    golden, config, params = golden_model(name, tmp_path)
    logits_BTV = packed_logits(packed(params, "float32"), config, golden["tokens"])
    np.testing.assert_allclose(logits_BTV, golden["logits"], rtol=0, atol=1e-4)
    halved = packed(params, "bfloat16")
    assert halved["layers_0"]["q_k_v"]["kernel"].dtype == jnp.bfloat16
    logits_BTV = packed_logits(halved, config, golden["tokens"])
    error = np.abs(logits_BTV - golden["logits"]).max() / np.abs(golden["logits"]).max()
    assert 1e-4 < error < 2e-2  # three digits are left of the numbers in products


@pytest.mark.parametrize("name", ["llama", "llama3", "qwen2", "qwen3"])
def test_logits_equal_those_of_torch(name, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed; the golden files stand for it")
    model = torch_model(configs()[name], seed=7)
    model.save_pretrained(tmp_path)
    config = read_config(tmp_path, "float32", "float32")
    tokens_BT = np.random.default_rng(7).integers(0, config.vocab_size, (3, 70))
    logits_BTV = causal_logits(load_safetensors(tmp_path, config), config, tokens_BT)
    np.testing.assert_allclose(logits_BTV, torch_logits(model, tokens_BT), rtol=0, atol=1e-4)


def test_remat_changes_nothing_but_recomputes():
    params = init(SMALL, jax.random.key(0))
    tokens_N = jnp.arange(24) % 50

    def loss(params, remat):
        scale = jnp.float32(1.0) + 0.0 * params["final_norm"]["scale"][0]  # a traced closure

        def attend(q, k, v, kv):
            out, kv = causal_attend(2)(q, k, v, kv)
            return out * scale, kv

        hidden, _ = forward(params, SMALL, tokens_N, tokens_N % 12, attend, remat=remat)
        return jnp.mean(unembed(params, SMALL, hidden) ** 2)

    plain, again = (
        jax.jit(jax.grad(loss), static_argnums=1)(params, remat) for remat in (False, True)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), plain, again)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(plain)) > 1e-4

    def activations(remat):  # of the gated feed-forward, in the program of the gradient
        program = jax.make_jaxpr(jax.grad(lambda params: loss(params, remat)))(params)
        return str(program).count("logistic ")  # (a jaxpr names repeated parts once)

    assert activations(True) > activations(False)


def test_kv_is_threaded_through_layers_in_order():
    """Decoding token by token with a dense cache in `kv` gives the logits of the whole row."""
    params = init(SMALL, jax.random.key(1))
    params = jax.tree.map(lambda x: 5.0 * x, params)
    tokens = np.array([[3, 1, 4, 1, 5, 9, 2, 6]])
    whole = causal_logits(params, SMALL, tokens)[0]

    @jax.jit
    def step(params, token, t, kv):
        def attend(q_NHC, k_NKC, v_NKC, kv):
            k, v = (x.at[t].set(new[0]) for x, new in zip(kv, (k_NKC, v_NKC), strict=True))
            scores = jnp.einsum("nkgc,skc->nkgs", q_NHC.reshape(1, 2, 2, 8), k) / 8**0.5
            weights = jax.nn.softmax(jnp.where(jnp.arange(8) <= t, scores, -jnp.inf), axis=-1)
            return jnp.einsum("nkgs,skc->nkgc", weights, v).reshape(1, 4, 8), (k, v)

        hidden, kv = forward(params, SMALL, token[None], t[None], attend, kv)
        return unembed(params, SMALL, hidden)[0], kv

    empty = jnp.zeros((8, 2, 8))
    kv = ((empty, empty),) * SMALL.layers
    for t, token in enumerate(tokens[0]):
        logits_V, kv = step(params, jnp.int32(token), jnp.int32(t), kv)
        np.testing.assert_allclose(logits_V, whole[t], atol=2e-4)
    assert isinstance(kv, tuple) and float(jnp.abs(kv[0][0] - kv[1][0]).max()) > 0.01


def test_tiny_size_and_initial_scale():
    config = tiny_config(2048)
    params = init(config, jax.random.key(0))
    count = sum(x.size for x in jax.tree.leaves(params))
    assert count == parameter_count(config) == 853_056
    layer = params["layers_0"]
    assert np.std(layer["gate"]["kernel"]) == pytest.approx(0.02, rel=0.02)
    assert np.std(layer["down"]["kernel"]) == pytest.approx(0.02 / 6**0.5, rel=0.02)
    tokens = np.arange(32)[None]
    logits = causal_logits(params, config, tokens)[0]
    # A fresh model knows nothing: its loss is that of the uniform distribution.
    loss = -np.mean(np.asarray(jax.nn.log_softmax(logits))[np.arange(31), tokens[0, 1:]])
    assert loss == pytest.approx(np.log(2048), rel=0.05)


@pytest.mark.parametrize("tied", [True, False])
def test_bfloat16_computes_in_bfloat16_but_logits_are_float32(tied):
    config = dataclasses.replace(SMALL, tied=tied)
    params = init(config, jax.random.key(2))
    half = dataclasses.replace(config, dtype="bfloat16")
    seen = []

    def attend(q, k, v, kv):
        seen.append(v.dtype)
        return causal_attend(1)(q, k, v, kv)

    tokens_N = jnp.arange(16)
    hidden, _ = forward(params, half, tokens_N, tokens_N, attend)
    logits = unembed(params, half, hidden)
    assert seen == [jnp.bfloat16] * 2 and hidden.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    exact = causal_logits(params, config, np.arange(16)[None])[0]
    assert 0 < np.abs(logits - exact).max() < 0.02 * np.abs(exact).max() + 0.01


@pytest.mark.parametrize("switches", [{}, {"qkv_bias": True}, {"qk_norm": True}, {"tied": True}])
def test_shapes_and_counts_agree(switches):
    config = dataclasses.replace(SMALL, **switches)
    shapes = param_shapes(config)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == parameter_count(config)
    assert from_hf_config(to_hf_config(config)) == config


def test_known_models_are_read_from_their_config_files():
    qwen = {
        "model_type": "qwen2",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_hidden_layers": 28,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }
    config = from_hf_config(qwen)
    assert (config.head_dim, config.qkv_bias, config.rope_theta) == (128, True, 1e6)
    assert parameter_count(config) == 1_543_714_304  # as published
    llama = {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    }
    config = from_hf_config(llama)
    assert config.rope_scaling == Llama3Scaling(factor=32.0)
    assert parameter_count(config) == 1_235_814_400  # as published
    assert from_hf_config(json.loads(json.dumps(to_hf_config(config)))) == config


@pytest.mark.parametrize(
    "change, says",
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}},
            "lacks its low_freq_factor, original_max_position_embeddings",
        ),
    ],
)
def test_what_the_decoder_lacks_is_refused(change, says):
    with pytest.raises(UserError, match=says):
        from_hf_config(to_hf_config(SMALL) | change)


def test_llama3_scaling_keeps_fast_and_stretches_slow_channels():
    plain = inverse_frequencies(64, 500000.0)
    scaled = inverse_frequencies(64, 500000.0, Llama3Scaling(factor=8.0))
    wavelength = 2 * np.pi / plain
    np.testing.assert_array_equal(scaled[wavelength < 2048], plain[wavelength < 2048])
    np.testing.assert_allclose(scaled[wavelength > 8192], plain[wavelength > 8192] / 8, rtol=1e-6)
    between = (wavelength > 2048) & (wavelength < 8192)
    assert between.any() and np.all(scaled[between] < plain[between])
