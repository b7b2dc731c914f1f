"""A whole run: warm-up, evaluation, RL, evaluation. Stops and resumes at any point.

Everything a run does after a checkpoint is a function of the config and of that checkpoint, so a
killed run that starts again writes the same lines (all but `time/*`).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from spark_jax.envs.pool import EnvPool, default_workers
from spark_jax.models.config import parameter_count
from spark_jax.rollout.dialogue import Dialogue
from spark_jax.rollout.engine import Engine
from spark_jax.rollout.engines import Engines
from spark_jax.run import borrow, footprint, warmup
from spark_jax.run.checkpoint import Checkpoints, abstract
from spark_jax.run.compilations import compilations, keep_on_disk
from spark_jax.run.config import start_or_resume
from spark_jax.run.evalfile import (
    AFTER_MORE,
    AFTER_WARMUP,
    asked_for,
    evaluation,
    last_evaluation_name,
    read_evaluations,
)
from spark_jax.run.examples import warm_up_examples
from spark_jax.run.iteration import rl_is_over
from spark_jax.run.metrics import MetricsWriter
from spark_jax.run.panels import borrow_evaluation, evaluate
from spark_jax.run.policy import Policy, asks_reference, load_policy, make_engine, mesh_of
from spark_jax.run.progress import duration
from spark_jax.run.reinforce import reinforce
from spark_jax.run.state import Run, State, phase_steps, save
from spark_jax.run.summary import print_summary
from spark_jax.run.supervised import finish_warm_up, more_warm_up, warm_up
from spark_jax.run.treefile import drop_later_trees
from spark_jax.run.worlds import make_world


def run(config: ConfigDict, workdir: Path | str) -> list[dict[str, Any]]:
    """Runs or resumes the run in `workdir`; returns its evaluations (entries of eval.json)."""
    workdir, began = Path(workdir), time.perf_counter()
    compilations()
    keep_on_disk()
    mesh_of(config)  # before anything is written
    resumed = start_or_resume(workdir, config)
    world = make_world(config)
    _say(f"{workdir}: {'resuming' if resumed else 'new run'}")
    fitting = default_workers()  # by the memory that is free before anything is loaded
    if world.source:
        _say(world.source)
    examples = warm_up_examples(config, workdir, world)
    policy = load_policy(config, workdir, warmup.texts(examples), world.cut)
    count = parameter_count(policy.config)
    _say(f"model {config.model.preset}: {count / 1e6:.1f} M parameters, "
         f"{policy.codec.vocab_size} tokens, {len(examples)} warm-up dialogues")  # fmt: skip
    engine = make_engine(config, policy)
    with (
        Checkpoints(workdir, config.checkpoint.keep) as checkpoints,
        EnvPool(
            world.make_env, _workers(config, kept := checkpoints.newest_state(), fitting)
        ) as environments,
    ):
        params, policy = policy.params, policy._replace(params=None)
        if kept is not None:  # fresh weights go before those of the checkpoint come
            params = abstract(params)
        if needed := _needed(config, policy, params, engine):
            _say(needed)
        state, params, opt_state = _restore(config, policy, params, kept, checkpoints)
        state.workers = environments.workers
        drop_later_trees(workdir, state.iteration - 1)
        with MetricsWriter(workdir, last_step=state.step, lines=state.lines) as metrics:
            dialogue = Dialogue(
                policy.codec, world.system, world.first_message, window=world.window
            )
            this = Run(
                config, workdir, world, environments, policy, engine, dialogue, checkpoints,
                metrics, state,
            )  # fmt: skip
            engine.use(params, config.rl.temperature)
            last = last_evaluation_name(config)
            found = evaluation(workdir, last)
            here = last != AFTER_WARMUP or not state.iteration  # that is where the parameters are
            if here and found and not asked_for(found, config):
                # Evaluated anew: config.eval.* is not what it was.
                state.evaluated = [name for name in state.evaluated if name != last]
            ended = last in state.evaluated
            programs = engine.compile_all()
            _say(
                f"{programs} sampling programs ready after {duration(time.perf_counter() - began)}"
            )
            if not state.warm and config.sft.from_run:
                params = borrow.reference(config.sft.from_run, params)
                opt_state = phase_steps(config, this.policy, warm=True).init(params)
                finish_warm_up(this, params, opt_state)
            elif not state.warm:
                params, opt_state = warm_up(this, examples, params, opt_state)
            if AFTER_WARMUP not in state.evaluated and not borrow_evaluation(this):
                evaluate(this, AFTER_WARMUP, params)
            sft = config.algo.name == "sft"
            if last == AFTER_MORE and last not in state.evaluated:
                params, opt_state = more_warm_up(this, examples, params, opt_state)
            elif not sft and not rl_is_over(config, state.sampled):
                state.evaluated = [name for name in state.evaluated if name != last]
                ended = False
                params, opt_state = reinforce(this, examples, params, opt_state)
            if last not in state.evaluated:
                evaluate(this, last, params)
            if not ended:
                state.step += 1
                save(this, params, opt_state)
    evaluations = read_evaluations(workdir)
    print_summary(evaluations)
    _say(f"done in {duration(time.perf_counter() - began)}; report: "
         f"python -m spark_jax.report {workdir}")  # fmt: skip
    return evaluations


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _workers(config: ConfigDict, kept: dict[str, Any] | None, fitting: int) -> int:
    """Environments of this run: as many as are asked for, or as it began with (its newest
    checkpoint's state is `kept`), or as fit. How many paths go on side by side decides how sums
    over them are rounded."""
    workers = config.env.workers or (kept or {}).get("workers") or fitting
    _say(f"{workers} environments")
    return workers


def _needed(config: ConfigDict, policy: Policy, params: Any, engine: Engine | Engines) -> str:
    """What each device needs, in one line, where it says how much it has."""
    room = footprint.room_of_a_device()
    if room is None:
        return ""
    steps = phase_steps(config, policy, warm=True)
    weights = footprint.device_bytes(params)
    always = {"parameters": weights, "optimiser": footprint.device_bytes(steps.shapes(params))}
    if asks_reference(config):
        always["reference"] = weights
    # Gradients are summed in float32 (learn/step.py), whatever the parameters are.
    gradients = footprint.device_bytes(params, itemsize=4)
    return footprint.check(always, engine.device_bytes(params), {"gradients": gradients}, room)


def _restore(
    config: ConfigDict,
    policy: Policy,
    params: Any,
    kept: dict[str, Any] | None,
    checkpoints: Checkpoints,
) -> tuple[State, Any, Any]:
    """State, parameters and optimiser state: of the newest checkpoint, whose own state is `kept`,
    or fresh ones. `params`: fresh parameters, or the shapes of those to be read."""
    state = State(**kept) if kept else State()
    steps = phase_steps(config, policy, state.warm)
    if kept is None:
        return state, params, steps.init(params)
    saved = checkpoints.restore(params, steps.shapes(params))
    _say(f"checkpoint of step {saved.step}: {state.epoch} epochs, {state.iteration} iterations")
    return state, saved.params, saved.opt_state
