"""From the config to a model, a sampler and a learner: the only place that knows both sides."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding
from ml_collections import ConfigDict

from spark_jax.envs.response import METAREASONING, THINKING, Kind
from spark_jax.learn.loss import KL_ESTIMATORS, policy_loss, sft_loss
from spark_jax.learn.optimisers import OPTIMISERS
from spark_jax.learn.step import Steps, make_steps
from spark_jax.models.chat import Codec
from spark_jax.models.config import ModelConfig
from spark_jax.models.presets import FROM_SCRATCH, load_model
from spark_jax.models.sharding import cache_sharding, data_parts, make_mesh
from spark_jax.ops import gpu_trial, tree_attention
from spark_jax.ops.backend import Backend, choose
from spark_jax.rollout.engine import Engine
from spark_jax.rollout.engine_shape import EngineShape, attention_sizes
from spark_jax.rollout.engines import Engines
from spark_jax.rollout.growing import Limits, TreeRule
from spark_jax.rollout.sampler import Sampler
from spark_jax.rollout.signals import USES_SURPRISE, ForkCounts, make_signal, never
from spark_jax.rollout.stops import stop_patterns, stop_table
from spark_jax.types import UserError


class Policy(NamedTuple):
    config: ModelConfig
    params: Any
    codec: Codec
    mesh: Mesh | None  # None: one device, no sharding


def load_policy(
    config: ConfigDict, workdir: Path, texts: Iterable[str] | None, cut: str = "smollm"
) -> Policy:
    """The model of `config.model`. A vocabulary learned from `texts` (`cut`: World) is kept in the
    work folder, so a resumed run has the same tokens. With None nothing is written, and a model
    that has to learn its vocabulary must have done so: else UserError."""
    mesh = mesh_of(config)
    saved = workdir / "tokenizer"
    path = config.model.path
    if config.model.preset in FROM_SCRATCH and not path and (saved / "tokenizer.json").is_file():
        path = str(saved)
    if config.model.preset in FROM_SCRATCH and not path and texts is None:
        raise UserError(
            f"{workdir} has no vocabulary for model.preset={config.model.preset}, which is trained "
            "from scratch: give the work folder of a run."
        )
    model = load_model(
        config.model.preset,
        path,
        config.seed,
        texts,
        config.model.dtype,
        config.model.param_dtype,
        mesh,
        cut,
    )
    if texts is not None and not (saved / "codec.json").is_file():
        model.codec.save(saved)
    params = model.params
    if mesh is None:  # committed from the start, as restored ones are: no second compilation
        params = jax.device_put(params, SingleDeviceSharding(jax.devices()[0]))
    return Policy(model.config, params, model.codec, mesh)


def mesh_of(config: ConfigDict) -> Mesh | None:
    """The devices of `config.mesh`; None if it is one. Raises UserError if it cannot be made."""
    sizes = config.mesh.data or -1, config.mesh.fsdp, config.mesh.tensor
    mesh = make_mesh(*sizes)
    return mesh if mesh.size > 1 else None


def sampler_backend(config: ConfigDict, policy: Policy) -> tuple[Backend, str]:
    """What `rollout.backend` stands for here, and why if that is less than there could be."""
    rollout, shape = config.rollout, policy.config
    sizes = attention_sizes(shape, rollout.page_slots, rollout.dtype or shape.dtype)
    mesh = policy.mesh
    spread = mesh is not None and (
        mesh.size > mesh.shape["data"] or jax.default_backend() == "cpu"  # C++ is for one device
    )
    return gpu_trial.pick(rollout.backend, spread, sizes)


def make_engine(config: ConfigDict, policy: Policy) -> Engine | Engines:
    """The sampler of `config.rollout`: on a mesh an engine for each copy of the parameters, which
    share rows and pages equally."""
    rollout = config.rollout
    backend, why = sampler_backend(config, policy)
    if why:
        print(why, file=sys.stderr, flush=True)
    parts = [None] if policy.mesh is None else data_parts(policy.mesh)
    rows = -(-rollout.rows // len(parts))
    pages_of_a_path = 2 + -(-(rollout.path_tokens + rollout.chunk) // rollout.page_slots)
    # Twice the running rows: paths that wait for their environment keep their pages.
    pages = 1 + 2 * rows * pages_of_a_path
    if rollout.pages:
        pages = -(-rollout.pages // len(parts))
        if len(parts) > 1:  # each has room for a path and a fork of it
            pages = max(pages, 1 + 2 * pages_of_a_path)
    shape = EngineShape(
        rows=rows,
        slots=rollout.page_slots,
        pages=pages,
        path_tokens=rollout.path_tokens,
        chunk=rollout.chunk,
        prefill_tokens=max(256, 32 * rows),  # an observation for every row
        backend=backend,
    )
    stops = stop_table(policy.codec.token_bytes(), stop_patterns(config.tree.fork_at))
    engines = [
        Engine(
            Sampler(
                policy.config,
                shape,
                stops,
                policy.codec.end_of_turn_id,
                rollout.dtype or policy.config.dtype,
                None if part is None else cache_sharding(policy.config.kv_heads, part),
            )
        )
        for part in parts
    ]
    return engines[0] if len(engines) == 1 else Engines(engines, parts)


def tree_rule(config: ConfigDict, counts: ForkCounts | None) -> TreeRule:
    """Shape of the training trees. `counts`: for `tree.signal=calibrated`."""
    tree = config.tree
    rule = voting_rule(config, counts)
    return dataclasses.replace(
        rule, reinvest=tree.reinvest, patience=tree.patience, reward=config.rl.reward
    )


def voting_rule(config: ConfigDict, counts: ForkCounts | None = None) -> TreeRule:
    """The trees of forking at test time: those of the training, but no reward is looked at,
    nothing has been counted, and no path is given up."""
    tree = config.tree
    signal = make_signal(tree.signal, tree.signal_rate, tree.signal_rise, counts)
    return TreeRule(
        tree.leaves, tree.roots, tree.branch, tree.signal, signal, tree.fork_at, _tags(config),
        surprise=tree.signal in USES_SURPRISE,
    )  # fmt: skip


def episode_rule(config: ConfigDict) -> TreeRule:
    """A single path: where `tree.fork_at=same_step` makes the sampler stop after an <explore>, it
    has to go on from there too."""
    return TreeRule(1, 1, 1, "never", never, config.tree.fork_at, _tags(config))


def _tags(config: ConfigDict) -> tuple[Kind, ...]:
    return METAREASONING if config.algo.name == "rlvmr" else THINKING


def limits(config: ConfigDict) -> Limits:
    return Limits(config.env.max_steps, config.rollout.response_tokens, config.rollout.path_tokens)


def _tree_attention(config: ConfigDict, policy: Policy) -> tree_attention.Backend:
    """The learner's attention: C++ where the sampler's is (`rollout.backend`)."""
    backend, _ = choose(config.rollout.backend, spread=policy.mesh is not None)
    return "native" if backend == "native" else "blockwise"


def sft_steps(config: ConfigDict, policy: Policy) -> Steps:
    """Optimiser steps of the warm-up."""
    make = OPTIMISERS[config.sft.optimizer]
    optimizer = make(weight_decay=config.sft.weight_decay, max_norm=config.rl.grad_clip)
    return make_steps(
        policy.config,
        sft_loss,
        optimizer,
        mesh=policy.mesh,
        remat=config.train.remat,
        backend=_tree_attention(config, policy),
    )


def rl_steps(config: ConfigDict, policy: Policy) -> Steps:
    """Optimiser steps of RL (paper, Eq. 8); of ETO: of weighted likelihoods."""
    rl = config.rl
    loss = functools.partial(
        policy_loss,
        clip_low=rl.clip,
        clip_high=rl.clip,
        kl_coef=rl.kl_coef,
        entropy_coef=rl.entropy_coef,
        dual_clip=rl.dual_clip,
        kl_estimator=KL_ESTIMATORS[rl.kl],
    )
    pairs = config.algo.name == "eto"
    return make_steps(
        policy.config,
        sft_loss if pairs else loss,
        OPTIMISERS[rl.optimizer](weight_decay=rl.weight_decay, max_norm=rl.grad_clip),
        temperature=rl.temperature,
        mesh=policy.mesh,
        remat=config.train.remat,
        backend=_tree_attention(config, policy),
        entropy_gradient=rl.entropy_coef > 0 and not pairs,
    )


def asks_reference(config: ConfigDict) -> bool:
    """Whether RL compares the policy with the one after the warm-up."""
    return config.rl.kl_coef > 0 and config.algo.name != "eto"


def rows_of_micro_batch(config: ConfigDict, policy: Policy) -> int:
    """Rows that go through the model at once: `train.rows` on every device of the batch axes."""
    if policy.mesh is None:
        return config.train.rows
    return config.train.rows * policy.mesh.shape["data"] * policy.mesh.shape["fsdp"]


def to_host(metrics: dict[str, jax.Array]) -> dict[str, float]:
    return {name: float(np.asarray(value)) for name, value in metrics.items()}
