"""A round of ETO: explore, pair failures with what did better, update by DPO."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from spark_jax.learn.pack import (
    PackedBatch,
    PackStats,
    linear_tokens,
    micro_batches,
    node_sums,
    pack_trees,
)
from spark_jax.learn.preference import (
    Pairs,
    flat_pairs,
    only_paired,
    pair_leaves,
    path_coefficients,
    path_sums,
    path_weights,
    with_expert,
)
from spark_jax.learn.rows import ToPack, to_pack
from spark_jax.learn.step import Steps, mean_metrics, optimiser_step, put_batch
from spark_jax.run.iteration import Learned, learning_rate
from spark_jax.run.policy import Policy, rows_of_micro_batch, to_host
from spark_jax.types import Task, Tree

BETAS = 0.1, 0.5  # of the first round and of all later ones (arXiv 2403.02502)


class Part(NamedTuple):
    """What one optimiser step learns from."""

    number: int  # of `rl.minibatches`
    trees: list[Tree]  # their paths that are in pairs
    pairs: Pairs  # of the paths of all trees, one after the other
    ends: np.ndarray  # where the paths of the next tree begin
    weighed: list[ToPack]  # packed without weights: to score them
    batches: list[PackedBatch]
    stats: PackStats


def learn_pairs(
    config: ConfigDict,
    iteration: int,
    trees: Sequence[Tree],
    experts: Mapping[Task, Tree],
    steps: Steps,
    policy: Policy,
    params: Any,
    opt_state: Any,
    sampled: Sequence[int],
) -> Learned:
    """Up to `rl.minibatches` optimiser steps over the pairs of all trees (a step for which there
    are none is left out). `params` and `opt_state` are donated.

    The reference is the policy that explored in this round, as in the released code: all paths are
    scored with it before the first step. A step scores its paths with the policy as it is then;
    from the sums over whole paths comes what each path weighs, and one pass more gives the gradient
    (learn/preference.py). A path that is in several pairs goes through the model once.

    Args:
      experts: a chain for each task that has one.
      sampled: tokens sampled in each iteration so far, this one included.
    """
    start = time.perf_counter()
    beta = BETAS[min(iteration, 1)]
    items = []
    for tree in trees:
        both, expert = with_expert(tree, experts.get(tree.task))
        if pairs := pair_leaves(both, expert):
            items.append(only_paired(both, pairs))
    rows, train = rows_of_micro_batch(config, policy), config.train

    def packed(group: Sequence[Tree], coefficients: Sequence[np.ndarray]):
        weighed = [
            to_pack(tree, path_weights(tree, c))
            for tree, c in zip(group, coefficients, strict=True)
        ]
        batch, stats = pack_trees(
            [row[:2] for row in weighed], train.row_tokens, train.row_targets, rows
        )
        return weighed, [put_batch(b, policy.mesh) for b in micro_batches(batch, rows)], stats

    def sums(part: Part, scorer: Any) -> np.ndarray:
        logp_RM = np.concatenate([np.asarray(steps.score(scorer, b)[0]) for b in part.batches])
        by_node = node_sums(
            [row[:2] for row in part.weighed], logp_RM, train.row_tokens, train.row_targets
        )
        of_trees = zip(part.trees, part.weighed, by_node, strict=True)
        return np.concatenate([path_sums(tree, sum_G[row.place]) for tree, row, sum_G in of_trees])

    parts = []
    for number in range(config.rl.minibatches):
        if group := items[number :: config.rl.minibatches]:
            group_trees = [tree for tree, _ in group]
            counts = [len(tree.leaf_ids()) for tree in group_trees]
            part = Part(number, group_trees, flat_pairs(group), np.cumsum(counts)[:-1],
                        *packed(group_trees, [np.zeros(n) for n in counts]))  # fmt: skip
            parts.append((part, sums(part, params)))

    metrics, losses, margins, tokens, linear = [], [], [], 0, 0
    for part, ref_logp_S in parts:
        logp_S = sums(part, params) if metrics else ref_logp_S
        coefficient_S, loss, margin_P = path_coefficients(logp_S, ref_logp_S, part.pairs, beta)
        _, batches, _ = packed(part.trees, np.split(coefficient_S, part.ends))
        rate = learning_rate(config, iteration * config.rl.minibatches + part.number, sampled)
        params, opt_state, out = optimiser_step(steps, params, opt_state, batches, 1.0, rate)
        host = to_host({name: out[name] for name in ("grad_norm", "skipped")})
        if not host["skipped"]:
            losses += [loss] * len(margin_P)
            margins += margin_P.tolist() if metrics else []  # 0 before the first step
        metrics.append(host)
        tokens += part.stats.packed_tokens
        linear += sum(linear_tokens(tree) for tree in part.trees)
    mean = {f"train/{k}": v for k, v in mean_metrics(metrics).items()} if metrics else {}
    if losses:
        mean["train/loss"] = float(np.mean(losses))
    if margins:
        mean["train/margin"] = float(np.mean(margins))
        mean["train/pair_accuracy"] = float(np.mean(np.array(margins) > 0))
    mean |= {
        "train/pairs": sum(len(pairs) for _, pairs in items),
        "train/packed_tokens": tokens,
        "train/linear_tokens": linear,
        "time/update_s": time.perf_counter() - start,
    }
    return Learned(params, opt_state, mean)
