"""A round of ETO: explore, pair failures with what did better, update by DPO."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from spark_jax.learn.pack import linear_tokens, micro_batches, node_sums, pack_trees
from spark_jax.learn.preference import (
    flat_pairs,
    only_paired,
    pair_leaves,
    path_coefficients,
    path_sums,
    path_weights,
    with_expert,
)
from spark_jax.learn.rows import StepRows, step_rows
from spark_jax.learn.step import Steps, mean_metrics, optimiser_step, put_batch
from spark_jax.run.iteration import Learned, learning_rate
from spark_jax.run.policy import Policy, rows_of_micro_batch, to_host
from spark_jax.types import Task, Tree

BETAS = 0.1, 0.5  # of the first round and of all later ones (arXiv 2403.02502)


def learn_pairs(
    config: ConfigDict,
    iteration: int,
    trees: Sequence[Tree],
    experts: Mapping[Task, Tree],
    steps: Steps,
    policy: Policy,
    params: Any,
    opt_state: Any,
    reference: Any,
    sampled: Sequence[int],
) -> Learned:
    """Up to `rl.minibatches` optimiser steps over the pairs of all trees (a step for which there
    are none is left out). `params` and `opt_state` are donated.

    A step scores its paths with the policy as it is and with the reference; from the sums over
    whole paths comes what each path weighs, and one pass more gives the gradient
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
            step_rows(tree, path_weights(tree, c))
            for tree, c in zip(group, coefficients, strict=True)
        ]
        batch, stats = pack_trees(
            [row[:2] for row in weighed], train.row_tokens, train.row_targets, rows
        )
        return weighed, [put_batch(b, policy.mesh) for b in micro_batches(batch, rows)], stats

    def sums(
        group: Sequence[Tree], weighed: Sequence[StepRows], batches, scorer: Any
    ) -> np.ndarray:
        logp_RM = np.concatenate([np.asarray(steps.score(scorer, b)[0]) for b in batches])
        by_node = node_sums(
            [row[:2] for row in weighed], logp_RM, train.row_tokens, train.row_targets
        )
        sampled = zip(group, weighed, by_node, strict=True)
        return np.concatenate([path_sums(tree, sum_G[row.place]) for tree, row, sum_G in sampled])

    metrics, tokens, linear = [], 0, 0
    for part in range(config.rl.minibatches):
        group = items[part :: config.rl.minibatches]
        if not group:
            continue
        group_trees, pairs = [tree for tree, _ in group], flat_pairs(group)
        counts = [len(tree.leaf_ids()) for tree in group_trees]
        weighed, batches, stats = packed(group_trees, [np.zeros(n) for n in counts])
        logp_S, ref_logp_S = (
            sums(group_trees, weighed, batches, scorer) for scorer in (params, reference)
        )
        coefficient_S, loss, margin_P = path_coefficients(logp_S, ref_logp_S, pairs, beta)
        shares = np.split(coefficient_S, np.cumsum(counts)[:-1])
        _, batches, _ = packed(group_trees, shares)
        rate = learning_rate(config, iteration * config.rl.minibatches + part, sampled)
        params, opt_state, out = optimiser_step(steps, params, opt_state, batches, 1.0, rate)
        host = to_host({name: out[name] for name in ("grad_norm", "skipped")})
        host |= {"loss": loss, "margin": margin_P.mean(), "pair_accuracy": (margin_P > 0).mean()}
        metrics.append(host)
        tokens += stats.packed_tokens
        linear += sum(linear_tokens(tree) for tree in group_trees)
    mean = {f"train/{k}": v for k, v in mean_metrics(metrics).items()} if metrics else {}
    mean |= {
        "train/pairs": sum(len(pairs) for _, pairs in items),
        "train/packed_tokens": tokens,
        "train/linear_tokens": linear,
        "time/update_s": time.perf_counter() - start,
    }
    return Learned(params, opt_state, mean)
