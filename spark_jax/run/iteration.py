"""One iteration of SPARK: grow trees, weigh every token, update. Reads from top to bottom."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from spark_jax.envs.pool import EnvPool
from spark_jax.envs.tasks import tasks_of_iteration
from spark_jax.learn.advantage import LEAF_WEIGHTS, make_advantage, path_success_rate
from spark_jax.learn.credit import normaliser, record_advantages, segment_weights
from spark_jax.learn.pack import PackedBatch, linear_tokens, micro_batches, pack_trees
from spark_jax.learn.rows import to_pack
from spark_jax.learn.step import Steps, mean_metrics, optimiser_step, put_batch
from spark_jax.rollout.adapt import Shape, adapt_metrics, adapted
from spark_jax.rollout.curriculum import curriculum_metrics, type_weights
from spark_jax.rollout.dialogue import Dialogue
from spark_jax.rollout.engine import Engine
from spark_jax.rollout.expand import grow_trees
from spark_jax.rollout.measure import rollout_metrics
from spark_jax.rollout.rates import Rates
from spark_jax.rollout.signals import ForkCounts
from spark_jax.run.policy import (
    Policy,
    limits,
    rows_of_micro_batch,
    to_host,
    tree_rule,
)
from spark_jax.types import Task, Tree


class Learned(NamedTuple):
    params: Any
    opt_state: Any
    metrics: dict[str, float]


def rollout(
    config: ConfigDict,
    iteration: int,
    train: dict[str, list[Task]],
    params: Any,
    engine: Engine,
    environments: EnvPool,
    dialogue: Dialogue,
    swap_for: Callable[[Task, random.Random], dict[int, int]] | None = None,
    on_tree: Callable[[Tree], None] | None = None,
    counts: ForkCounts | None = None,
    rates: Rates | None = None,
    mixed: Rates | None = None,
) -> tuple[list[Tree], dict[str, float]]:
    """The trees of an iteration and the `rollout/*` and `time/*` metrics.

    `swap_for`: draws which names the dialogue of a task swaps (run/rename.py).
    `counts`: of the forks of past iterations, for `tree.signal=calibrated`.
    `rates`: of success in past iterations, for `tree.adapt`.
    `mixed`: of trees with both outcomes in past iterations, for `rl.types=mixed`.
    """
    start = time.perf_counter()
    before = dict(environments.stats)
    adapting, weights = {}, None
    if config.rl.types == "mixed":
        weights = type_weights(mixed or {}, train)
    n = config.rl.tasks_per_iteration
    tasks = tasks_of_iteration(train, n, config.seed, iteration, weights)
    if weights:
        adapting |= curriculum_metrics(weights, tasks)
    dialogues = [dialogue] * len(tasks)
    if swap_for:
        rng = random.Random(f"rename {config.seed} {iteration}")
        dialogues = [dataclasses.replace(dialogue, swap=swap_for(task, rng)) for task in tasks]
    rule = tree_rule(config, counts)
    rules = [rule] * len(tasks)
    if config.tree.adapt:
        shape, rates = Shape(rule.roots, rule.branch), rates or {}
        adapting |= adapt_metrics(shape, rates, tasks)
        shapes = [adapted(shape, rates, task.type) for task in tasks]
        rules = [dataclasses.replace(rule, **changed._asdict()) for changed in shapes]
    engine.use(params, config.rl.temperature)
    trees = grow_trees(
        tasks, engine, environments, dialogues, rules, limits(config),
        (config.seed, "rl", iteration), config.rollout.deterministic, on_tree,
    )  # fmt: skip
    spent = {name: environments.stats[name] - before[name] for name in before}
    stats = engine.stats
    metrics = rollout_metrics(trees) | {
        "rollout/path_success_rate": path_success_rate(trees),
        "rollout/prefill_tokens": stats.prefill_tokens,
        "rollout/wasted_prefill": 1 - stats.prefill_tokens / max(1, stats.prefill_slots),
        "rollout/evictions": stats.evictions,
        "rollout/wasted_rows": 1 - stats.response_tokens / max(1, stats.decode_rows),
        "rollout/shared_reads": 1 - stats.read_tokens / max(1, stats.row_tokens),
        "rollout/pages": stats.most_pages,
        "rollout/env_steps": spent["env_steps"],
        "rollout/replay_steps": spent["replay_steps"],
        "rollout/remembered_steps": spent["remembered_steps"],
        "rollout/replay_mismatches": spent["replay_mismatches"],
        "rollout/broken_actions": spent["broken_actions"],
        "time/worker_restarts": spent["worker_restarts"],
        "time/rollout_s": time.perf_counter() - start,
        "time/device_s": stats.device_seconds,
        "time/host_s": stats.host_seconds,
        "time/env_s": spent["step_seconds"],
    }
    return trees, metrics | adapting


def learn(
    config: ConfigDict,
    iteration: int,
    trees: Sequence[Tree],
    steps: Steps,
    policy: Policy,
    params: Any,
    opt_state: Any,
    reference: Any,
    sampled: Sequence[int],
) -> Learned:
    """`rl.minibatches` optimiser steps over whole trees. `params` and `opt_state` are donated.

    `sampled`: tokens sampled in each iteration so far, this one included (`learning_rate`).

    Log-probabilities of the reference (and, with `rl.recompute_old`, of the policy that sampled)
    are computed for all minibatches before the first update.
    """
    start = time.perf_counter()
    weight = LEAF_WEIGHTS[config.algo.leaf_weight]
    advantage = make_advantage(config.algo.advantage, config.algo.similarity)
    items = []
    for tree in trees:
        weights_L = weight(tree)
        credit = segment_weights(
            tree,
            advantage(tree, weights_L),
            weights_L,
            config.algo.invalid_penalty,
            per_leaf=config.algo.token_mean == "leaf",
        )
        record_advantages(tree, credit)
        rows_tree, credit, _ = to_pack(tree, credit)
        items.append((rows_tree, credit))

    rows = rows_of_micro_batch(config, policy)
    groups, packed = [], 0
    for part in range(config.rl.minibatches):
        group = items[part :: config.rl.minibatches]
        targets = config.train.row_targets
        batch, stats = pack_trees(group, config.train.row_tokens, targets, rows)
        packed += stats.packed_tokens
        batches = [
            _with_old_and_reference(config, steps, put_batch(b, policy.mesh), params, reference)
            for b in micro_batches(batch, rows)
        ]
        groups.append((batches, normaliser(group)))

    metrics = []
    for part, (batches, z) in enumerate(groups):
        rate = learning_rate(config, iteration * config.rl.minibatches + part, sampled)
        params, opt_state, out = optimiser_step(steps, params, opt_state, batches, z, rate)
        metrics.append(out)
    host = [to_host(m) for m in metrics]
    mean = {f"train/{name}": value for name, value in mean_metrics(host).items()}
    if not config.rl.kl_coef:  # then the reference was not asked
        del mean["train/kl"]
    # Before the first update the policy is the one that sampled: what differs is arithmetic.
    mean["train/logp_gap"] = next((m for m in host if not m["skipped"]), host[0])["logp_gap"]
    mean |= {
        "train/packed_tokens": packed,
        "train/linear_tokens": sum(linear_tokens(tree) for tree in trees),
        "time/update_s": time.perf_counter() - start,
    }
    return Learned(params, opt_state, mean)


def rl_is_over(config: ConfigDict, sampled: Sequence[int]) -> bool:
    """After iterations that have sampled so many tokens each: `rl.iterations` of them are done or,
    where a budget of tokens is set, that is used up (whole iterations: the last one goes over)."""
    if config.rl.sampled_tokens:
        return sum(sampled) >= config.rl.sampled_tokens
    return len(sampled) >= config.rl.iterations


def iterations_in_all(config: ConfigDict, sampled: Sequence[int]) -> int:
    """`rl.iterations`; with a budget of tokens, as many as it will probably take."""
    if not config.rl.sampled_tokens or not sampled:
        return config.rl.iterations
    left = max(0, config.rl.sampled_tokens - sum(sampled))
    return len(sampled) + math.ceil(left * len(sampled) / sum(sampled))


def learning_rate(config: ConfigDict, step: int, sampled: Sequence[int]) -> float:
    """Of optimiser step `step`, from 0: rises linearly over `rl.warmup_steps` to
    `rl.learning_rate`, then falls linearly to `rl.decay_to` of it in the last step of the run.

    With a budget of tokens (`rl.sampled_tokens`) the fall is linear in the tokens sampled since
    the rise, an iteration's tokens belonging to its steps in equal parts; it ends where the budget
    does. For iterations of equal size that is the same as the fall over steps.

    Adam's first steps have the size of the learning rate in every parameter, whatever the
    gradient's noise; on a small model that alone moves the policy far from the reference. The
    fall at the end takes that noise out again.
    """
    rl = config.rl
    rise = rl.warmup_steps + 1
    if step < rise:
        return rl.learning_rate * (step + 1) / rise
    if rl.sampled_tokens:
        risen = _tokens_after(rise - 1, sampled, rl.minibatches)
        now = _tokens_after(step, sampled, rl.minibatches)
        done = min(1.0, (now - risen) / max(1.0, rl.sampled_tokens - risen))
    else:
        last = rl.iterations * rl.minibatches - 1
        done = min(1.0, (step - rise + 1) / max(1, last - rise + 1))
    return rl.learning_rate * (1.0 + (rl.decay_to - 1.0) * done)


def _tokens_after(step: int, sampled: Sequence[int], steps_of_iteration: int) -> float:
    """Tokens that belong to the optimiser steps up to `step`."""
    iteration, part = divmod(step, steps_of_iteration)
    return sum(sampled[:iteration]) + sampled[iteration] * (part + 1) / steps_of_iteration


def _with_old_and_reference(
    config: ConfigDict, steps: Steps, batch: PackedBatch, params: Any, reference: Any
) -> PackedBatch:
    if config.rl.kl_coef:
        batch = batch._replace(ref_logp_RM=steps.score(reference, batch)[0])
    if config.rl.recompute_old:
        batch = batch._replace(old_logp_RM=steps.score(params, batch)[0])
    return jax.block_until_ready(batch)
