"""tunix's sampler: separate episodes in batches. It has neither a cache that outlives a call nor
rows that come and go, so every turn computes the whole dialogue again."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3.model import ModelConfig
from tunix.models.llama3.params import create_model_from_safe_tensors

from benchmarks.measured import Measured, Watch
from benchmarks.workload import Shape
from spark_jax.models.presets import Model
from spark_jax.models.weights import save_safetensors

NEW_TOKENS = 64  # a turn is sampled in calls of so many: one compiled length


class _Tokens:
    """A tokenizer for texts that are numbers."""

    def encode(self, text: str, **_) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids, **_) -> str:
        return " ".join(str(int(i)) for i in ids)

    def bos_id(self) -> int:
        return 0

    def eos_id(self) -> int:
        return -1

    def pad_id(self) -> int:
        return 0


def load(model: Model, dtype: str, path_tokens: int) -> Sampler:
    """The same weights in tunix's own model."""
    c = model.config
    config = ModelConfig(
        num_layers=c.layers,
        vocab_size=c.vocab_size,
        embed_dim=c.width,
        hidden_dim=c.feed_forward,
        num_heads=c.heads,
        head_dim=c.head_dim,
        num_kv_heads=c.kv_heads,
        rope_theta=int(c.rope_theta),
        norm_eps=c.norm_eps,
        weight_tying=c.tied,
    )
    with tempfile.TemporaryDirectory() as folder:
        save_safetensors(model.params, c, folder)
        loaded = create_model_from_safe_tensors(folder, config, dtype=jnp.dtype(dtype))
    cache = CacheConfig(
        cache_size=_prompt_size(path_tokens) + NEW_TOKENS,
        num_layers=c.layers,
        num_kv_heads=c.kv_heads,
        head_dim=c.head_dim,
    )
    return Sampler(loaded, _Tokens(), cache)


def play(
    sampler: Sampler, episodes: Sequence[Shape], rows: int, vocab_size: int, limit: float
) -> Measured:
    """All episodes, `rows` at a time; a turn lasts as long as its longest response."""
    order = sorted(episodes, key=lambda e: (len(e.response), sum(e.response)), reverse=True)
    batches = [order[i : i + rows] for i in range(0, len(order), rows)]
    compiled: set[int] = set()  # lengths of prompts
    rng = np.random.default_rng(0)
    steps = computed = 0
    watch = Watch(sum(e.response_tokens for e in episodes), limit)
    for batch in batches:
        paths: list[list[int]] = [[] for _ in batch]
        for turn in range(1, len(batch[0].response)):
            if watch.over:
                break
            alive = [i for i, e in enumerate(batch) if len(e.response) > turn]
            for i in alive:
                paths[i] += rng.integers(1, vocab_size, batch[i].context[turn - 1]).tolist()
            left = max(batch[i].response[turn] for i in alive)
            new: list[list[int]] = [[] for _ in batch]
            while left > 0:
                # Always `rows` of them: another number would be compiled anew.
                prompts = [paths[i] + new[i] for i in alive]
                prompts += [[1]] * (rows - len(alive))
                size = _prompt_size(max(map(len, prompts)))
                if size not in compiled:
                    with watch.stopped():
                        _sample(sampler, [[1]] * rows, size)
                    compiled.add(size)
                for i, ids in zip(alive, _sample(sampler, prompts, size), strict=False):
                    new[i] += ids
                left -= NEW_TOKENS
                steps += NEW_TOKENS
                computed += NEW_TOKENS * len(alive)
            for i in alive:
                paths[i] += new[i][: batch[i].response[turn]]
                watch.written += batch[i].response[turn]
    return watch.measured(
        computed_tokens=computed, wasted=1.0 - watch.written / max(1, steps * rows)
    )


def _sample(sampler: Sampler, prompts: list[list[int]], prompt_tokens: int) -> list[list[int]]:
    out = sampler(
        [" ".join(map(str, ids)) for ids in prompts],
        max_generation_steps=NEW_TOKENS,
        max_prompt_length=prompt_tokens,
        eos_tokens=[-1],
        temperature=1.0,
        top_p=1.0,
        seed=0,
    )
    return [np.asarray(ids).tolist() for ids in out.tokens]


def _prompt_size(tokens: int) -> int:
    """Prompts are padded to powers of two from 64 on: few programs to compile."""
    return max(64, 1 << (tokens - 1).bit_length())
