"""Where a run stands and what its phases share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from spark_jax.envs.pool import EnvPool
from spark_jax.learn.step import Steps
from spark_jax.rollout.dialogue import Dialogue
from spark_jax.rollout.engine import Engine
from spark_jax.rollout.engines import Engines
from spark_jax.run.checkpoint import Checkpoints
from spark_jax.run.metrics import MetricsWriter
from spark_jax.run.policy import Policy, rl_steps, sft_steps
from spark_jax.run.worlds import World


@dataclasses.dataclass
class State:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0  # epochs of the warm-up and iterations of RL so far
    warm: bool = False  # the warm-up is over
    epoch: int = 0
    iteration: int = 0
    lines: int = 0  # of metrics.jsonl
    workers: int = 0  # environments side by side
    panels: list[float] = dataclasses.field(default_factory=list)  # L0 success by epoch
    evaluated: list[str] = dataclasses.field(default_factory=list)
    sampled: list[int] = dataclasses.field(default_factory=list)  # tokens, by iteration of RL
    forks: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # reliability.py
    rates: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # rollout/adapt.py
    mixed: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # rollout/curriculum.py


class Run(NamedTuple):
    """What all phases share; nothing in here changes but the state and the open files."""

    config: ConfigDict
    workdir: Path
    world: World
    environments: EnvPool
    policy: Policy
    engine: Engine | Engines
    dialogue: Dialogue
    checkpoints: Checkpoints
    metrics: MetricsWriter
    state: State


def phase_steps(config: ConfigDict, policy: Policy, warm: bool) -> Steps:
    """The optimiser of this phase: the warm-up and RL may have different ones."""
    steps = rl_steps if warm and config.algo.name != "sft" else sft_steps
    return steps(config, policy)


def save(this: Run, params: Any, opt_state: Any) -> None:
    """A checkpoint of the run as it stands now."""
    this.state.lines = this.metrics.lines
    this.checkpoints.save(this.state.step, params, opt_state, dataclasses.asdict(this.state))
