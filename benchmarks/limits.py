"""What this machine could do at best: the yardstick of benchmarks/rollout.py.

A decoding step of B rows cannot be faster than reading the weights and the cached keys and values
once, nor than its multiplications at the best rate that a matrix product of the model's own shapes
reaches with B rows. Both rates are measured here, not taken from a data sheet.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.workload import Shape
from spark_jax.models.config import ModelConfig, parameter_count
from spark_jax.models.layouts import weights_on_the_left
from spark_jax.ops.backend import choose
from spark_jax.ops.cpu_products import multiply, pack

REPEATS = 7


class Limits(NamedTuple):
    bytes_per_s: float
    decode_flops_per_s: float  # best product of the model's shapes with B rows
    prefill_flops_per_s: float  # the same with 256 rows


def measure(config: ModelConfig, rows: int) -> Limits:
    return Limits(bandwidth(), matrix_rate(config, rows), matrix_rate(config, 256))


def shortest(run) -> float:
    """Seconds of the fastest of several calls, after one that compiles."""
    jax.block_until_ready(run())
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)


def bandwidth(megabytes: int = 512) -> float:
    """Bytes read per second by a sum over an array far larger than the caches."""
    x = jnp.ones(megabytes * 2**20 // 4, jnp.float32)
    total = jax.jit(jnp.sum)
    return x.nbytes / shortest(lambda: total(x))


def matrix_rate(config: ModelConfig, rows: int) -> float:
    """Multiplications and additions per second of the best of the model's products: by XLA, the
    weights on the right or, stored by output, on the left; on a CPU by the C++ kernel too."""
    c = config
    native = choose("auto", spread=False)[0] == "native"
    shapes = {
        (c.width, c.heads * c.head_dim),
        (c.width, c.feed_forward),
        (c.feed_forward, c.width),
        (c.width, c.vocab_size),
    }
    best = 0.0
    for inner, outer in sorted(shapes):
        flops = 2 * rows * inner * outer
        # Enough different matrices that they come from memory, as in a step of the model.
        copies = max(1, min(64, 2**27 // (inner * outer * 4)))
        x = jnp.ones((rows, inner), jnp.dtype(c.dtype))
        w = jnp.ones((inner, outer), jnp.dtype(c.dtype))
        ways = [(w, jnp.matmul), (w.T, _on_the_left)]
        if native:
            ways.append((pack(w, c.dtype), functools.partial(multiply, outputs=outer)))
        for one, product in ways:
            many = jnp.tile(one, (copies, *[1] * one.ndim))
            seconds = shortest(lambda: _products(x, many, product))  # noqa: B023
            best = max(best, copies * flops / seconds)
    return best


@functools.partial(jax.jit, static_argnums=2)
def _products(x, w, product):
    return jax.lax.scan(lambda total, m: (total + product(x, m).sum(), None), 0.0, w)[0]


def _on_the_left(x, w):
    return weights_on_the_left(w, x)


def cached_bytes(config: ModelConfig) -> int:
    """Bytes of one token's keys and values in all layers."""
    size = jnp.dtype(config.dtype).itemsize
    return 2 * config.layers * config.kv_heads * config.head_dim * size


def least_seconds(
    config: ModelConfig, trees: Sequence[Shape], rows: int, read_tokens: int, limits: Limits
) -> float:
    """Least time for the workload with `rows` rows, all of them busy all the time.

    `read_tokens`: cached tokens that have to be read, those that rows share counted once (as the
    engine with sharing counts them).
    """
    c = config
    parameters = parameter_count(c) - (0 if c.tied else c.vocab_size * c.width)
    body = parameters - c.vocab_size * c.width  # the embedding is a lookup
    new = sum(tree.response_tokens for tree in trees)
    prompt = sum(sum(tree.context) for tree in trees)
    steps = new / rows
    weights = parameters * jnp.dtype(c.dtype).itemsize
    by_bytes = (steps * weights + read_tokens * cached_bytes(c)) / limits.bytes_per_s
    attention = 4 * c.layers * c.heads * c.head_dim * _attended(trees)
    by_flops = (2 * parameters * new + attention) / limits.decode_flops_per_s
    prefill = 2 * body * prompt / limits.prefill_flops_per_s
    return max(by_bytes, by_flops) + prefill


def _attended(trees: Sequence[Shape]) -> int:
    """Tokens that the sampled tokens look at, summed over them."""
    total = 0
    for tree in trees:
        before = [0] * len(tree.parent)  # tokens in front of a node's response
        for node, parent in enumerate(tree.parent):
            if parent >= 0:
                before[node] = before[parent] + tree.response[parent] + tree.context[parent]
            n = tree.response[node]
            total += n * before[node] + n * (n + 1) // 2
    return total
