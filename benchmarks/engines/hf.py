"""transformers' `generate` on a recorded workload: separate episodes in batches, the cache carried
over from turn to turn.

It knows neither shared beginnings nor rows that come and go: the rows of a batch start together,
every turn lasts as long as its longest response, and rows whose episode is over are dropped.
Episodes of similar length share a batch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import numpy as np
import torch
import transformers

from benchmarks.measured import Measured, Watch
from benchmarks.workload import Shape
from spark_jax.models.presets import Model
from spark_jax.models.weights import save_safetensors


def load(model: Model, dtype: str):
    """The same weights as transformers' own model."""
    with tempfile.TemporaryDirectory() as folder:
        save_safetensors(model.params, model.config, folder)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
    return loaded.eval()


def play(model, episodes: Sequence[Shape], rows: int, limit: float) -> Measured:
    """All episodes, `rows` at a time."""
    order = sorted(episodes, key=lambda e: (len(e.response), sum(e.response)), reverse=True)
    batches = [order[i : i + rows] for i in range(0, len(order), rows)]
    rng = np.random.default_rng(0)
    computed = prefilled = steps = 0
    watch = Watch(sum(e.response_tokens for e in episodes), limit)
    with torch.inference_mode():
        for batch in batches:
            counts = _play_batch(model, batch, rng, watch)
            computed, prefilled = computed + counts[0], prefilled + counts[1]
            steps += counts[2]
    return watch.measured(
        computed_tokens=computed,
        prefill_tokens=prefilled,
        wasted=1.0 - watch.written / max(1, steps * rows),
    )


def _play_batch(model, batch: Sequence[Shape], rng, watch: Watch) -> tuple[int, int, int]:
    """(tokens sampled for rows that were alive, tokens prefilled, decoding steps)."""
    vocab = model.config.vocab_size
    cache = transformers.DynamicCache(config=model.config)
    alive = list(range(len(batch)))
    ids = torch.zeros((len(batch), 0), dtype=torch.long)
    mask = torch.zeros((len(batch), 0), dtype=torch.long)
    computed = prefilled = steps = 0
    for turn in range(1, max(len(e.response) for e in batch)):
        if watch.over:
            break
        staying = [i for i, e in enumerate(alive) if len(batch[e].response) > turn]
        if len(staying) < len(alive):
            alive = [alive[i] for i in staying]
            ids, mask = ids[staying], mask[staying]
            cache.batch_select_indices(torch.tensor(staying))
        context = [batch[e].context[turn - 1] for e in alive]
        longest = max(context)
        new = torch.from_numpy(rng.integers(0, vocab, (len(alive), longest)))
        known = torch.tensor([[0] * (longest - n) + [1] * n for n in context])
        ids, mask = torch.cat([ids, new], 1), torch.cat([mask, known], 1)
        response = [batch[e].response[turn] for e in alive]
        most = max(response)
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=most,
            min_new_tokens=most,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            eos_token_id=None,
            pad_token_id=0,
        )
        written = torch.tensor([[1] * n + [0] * (most - n) for n in response])
        ids, mask = out, torch.cat([mask, written], 1)
        computed += most * len(alive)
        watch.written += sum(response)
        prefilled += sum(context)
        steps += most
    return computed, prefilled, steps
