"""Makes tests/golden/*.npz: logits of small random models by transformers' PyTorch code.

    python tests/make_golden.py

Needs torch. Each file holds a config.json, the weights under their Hugging Face names (exact in
float16), tokens [B, T] and logits [B, T, V].
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden"
SIZES = {
    "vocab_size": 80,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def configs() -> dict:
    """Name of each case -> transformers configuration."""
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config

    return {
        "llama": LlamaConfig(**SIZES, rms_norm_eps=1e-5, tie_word_embeddings=False),
        "llama3": LlamaConfig(
            **SIZES,
            max_position_embeddings=256,
            rope_parameters=LLAMA3_ROPE,
            tie_word_embeddings=True,
        ),
        "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
        "qwen3": Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=False),
    }


def torch_model(config, seed: int):
    """The PyTorch model with every parameter (norms and biases too) random, exact in float16."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.15 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_((noise + ("norm" in name)).half().float())
    return model.float()


def torch_logits(model, tokens_BT: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] of the PyTorch model."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens_BT)).logits.numpy()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for seed, (name, config) in enumerate(configs().items()):
        model = torch_model(config, seed)
        tokens_BT = np.random.default_rng(seed).integers(0, SIZES["vocab_size"], (2, 48))
        weights = {
            "weights/" + key: value.numpy().astype(np.float16)
            for key, value in model.state_dict().items()
            if not (config.tie_word_embeddings and key == "lm_head.weight")
        }
        np.savez_compressed(
            FOLDER / f"{name}.npz",
            config=json.dumps(config.to_dict(), default=str),
            tokens=tokens_BT,
            logits=torch_logits(model, tokens_BT),
            **weights,
        )


if __name__ == "__main__":
    main()
