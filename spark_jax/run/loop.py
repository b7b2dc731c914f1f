"""A whole run: warm-up, evaluation, RL, evaluation. Stops and resumes at any point.

Everything a run does after a checkpoint is a function of the config and of that checkpoint, so a
killed run that starts again writes the same lines (all but `time/*`).
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from spark_jax.envs.pool import EnvPool, default_workers
from spark_jax.envs.tasks import panel, seen, unseen
from spark_jax.models.config import parameter_count
from spark_jax.rollout.adapt import count_successes
from spark_jax.rollout.curriculum import count_mixed
from spark_jax.rollout.dialogue import Dialogue
from spark_jax.rollout.engine import Engine
from spark_jax.rollout.reliability import count_forks, reliabilities
from spark_jax.run import borrow, warmup
from spark_jax.run.checkpoint import Checkpoints
from spark_jax.run.compilations import compilations, keep_on_disk
from spark_jax.run.config import start_or_resume
from spark_jax.run.evalfile import (
    AFTER_MORE,
    AFTER_WARMUP,
    EpisodeResult,
    add_evaluation,
    eval_metrics,
    last_evaluation_name,
    read_evaluations,
)
from spark_jax.run.evaluation import play_panel
from spark_jax.run.examples import warm_up_examples
from spark_jax.run.iteration import iterations_in_all, learn, rl_is_over, rollout
from spark_jax.run.metrics import MetricsWriter
from spark_jax.run.policy import (
    Policy,
    episode_rule,
    limits,
    load_policy,
    make_engine,
    rl_steps,
    rows_of_micro_batch,
    sft_steps,
)
from spark_jax.run.preference import learn_pairs
from spark_jax.run.progress import Progress, duration
from spark_jax.run.rename import swapper
from spark_jax.run.summary import print_summary
from spark_jax.run.treefile import drop_later_trees, write_trees
from spark_jax.run.worlds import World, make_world
from spark_jax.types import Tree


@dataclasses.dataclass
class State:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0  # epochs of the warm-up and iterations of RL so far
    warm: bool = False  # the warm-up is over
    epoch: int = 0
    iteration: int = 0
    lines: int = 0  # of metrics.jsonl
    panels: list[float] = dataclasses.field(default_factory=list)  # L0 success by epoch
    evaluated: list[str] = dataclasses.field(default_factory=list)
    sampled: list[int] = dataclasses.field(default_factory=list)  # tokens, by iteration of RL
    forks: dict[str, list[int]] = dataclasses.field(default_factory=dict)  # rollout/reliability.py
    rates: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # rollout/adapt.py
    mixed: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # rollout/curriculum.py


class Run(NamedTuple):
    """What all phases share; nothing in here changes but the state and the open files."""

    config: ConfigDict
    workdir: Path
    world: World
    environments: EnvPool
    policy: Policy
    engine: Engine
    dialogue: Dialogue
    checkpoints: Checkpoints
    metrics: MetricsWriter
    state: State
    say: Callable[[str], None]


def run(config: ConfigDict, workdir: Path | str) -> list[dict[str, Any]]:
    """Runs or resumes the run in `workdir`; returns its evaluations (entries of eval.json)."""
    workdir, began = Path(workdir), time.perf_counter()
    compilations()
    keep_on_disk()
    resumed = start_or_resume(workdir, config)
    world = make_world(config)
    workers = config.env.workers or default_workers()
    _say(f"{workdir}: {'resuming' if resumed else 'new run'}, {workers} environments")
    if world.source:
        _say(world.source)
    examples = warm_up_examples(config, workdir, world)
    policy = load_policy(config, workdir, warmup.texts(examples))
    count = parameter_count(policy.config)
    _say(f"model {config.model.preset}: {count / 1e6:.1f} M parameters, "
         f"{policy.codec.vocab_size} tokens, {len(examples)} warm-up dialogues")  # fmt: skip
    engine = make_engine(config, policy)
    with (
        EnvPool(world.make_env, workers) as environments,
        Checkpoints(workdir, config.checkpoint.keep) as checkpoints,
    ):
        state, params, opt_state = _restore(config, policy, checkpoints)
        drop_later_trees(workdir, state.iteration - 1)
        with MetricsWriter(workdir, last_step=state.step, lines=state.lines) as metrics:
            dialogue = Dialogue(
                policy.codec, world.system, world.first_message, window=world.window
            )
            this = Run(
                config, workdir, world, environments, policy._replace(params=None), engine,
                dialogue, checkpoints, metrics, state, _say,
            )  # fmt: skip
            del policy
            engine.use(params, config.rl.temperature)
            programs = engine.compile_all()
            _say(
                f"{programs} sampling programs ready after {duration(time.perf_counter() - began)}"
            )
            if not state.warm and config.sft.from_run:
                params = borrow.reference(config.sft.from_run, params)
                opt_state = _optimiser_state(config, this.policy, params, warm=True)
                _finish_warm_up(this, params, opt_state)
            elif not state.warm:
                params, opt_state = _warm_up(this, examples, params, opt_state)
            if AFTER_WARMUP not in state.evaluated and not _borrow_evaluation(this):
                _evaluate(this, AFTER_WARMUP, params)
            sft = config.algo.name == "sft"
            last = last_evaluation_name(config)
            if last == AFTER_MORE and last not in state.evaluated:
                params, opt_state = _more_warm_up(this, examples, params, opt_state)
            elif not sft and not rl_is_over(config, state.sampled):
                state.evaluated = [name for name in state.evaluated if name != last]
                params, opt_state = _reinforce(this, examples, params, opt_state)
            if last not in state.evaluated:
                _evaluate(this, last, params)
                state.step += 1
                _save(this, params, opt_state)
    evaluations = read_evaluations(workdir)
    print_summary(evaluations)
    _say(f"done in {duration(time.perf_counter() - began)}; report: "
         f"python -m spark_jax.report {workdir}")  # fmt: skip
    return evaluations


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _restore(
    config: ConfigDict, policy: Policy, checkpoints: Checkpoints
) -> tuple[State, Any, Any]:
    """State, parameters and optimiser state: of the newest checkpoint, or fresh ones."""
    kept = checkpoints.newest_state()
    state = State(**kept) if kept else State()
    opt_state = _optimiser_state(config, policy, policy.params, state.warm)
    if kept is None:
        return state, policy.params, opt_state
    saved = checkpoints.restore(policy.params, opt_state)
    _say(f"checkpoint of step {saved.step}: {state.epoch} epochs, {state.iteration} iterations")
    return state, saved.params, saved.opt_state


def _optimiser_state(config: ConfigDict, policy: Policy, params: Any, warm: bool) -> Any:
    """A fresh state of the optimiser of this phase: the two phases may have different ones."""
    steps = rl_steps if warm and config.algo.name != "sft" else sft_steps
    return steps(config, policy).init(params)


def _save(this: Run, params: Any, opt_state: Any) -> None:
    this.state.lines = this.metrics.lines
    this.checkpoints.save(this.state.step, params, opt_state, dataclasses.asdict(this.state))


# --- the phases -------------------------------------------------------------------------------


def _warm_up(this: Run, examples, params: Any, opt_state: Any) -> tuple[Any, Any]:
    """SFT until the L0 panel stops rising (`sft.patience`), at most `sft.epochs`; the parameters
    at its end are the reference."""
    config, state = this.config, this.state
    steps = sft_steps(config, this.policy)
    shape, lessons, vary = _sft_data(this, examples)
    epochs = config.sft.epochs if lessons else 0
    with Progress("warm-up", epochs, "epoch", done=state.epoch) as progress:
        while state.epoch < epochs and not warmup.stopped_rising(state.panels, config.sft.patience):
            start, compiled = time.perf_counter(), compilations()

            def rate(done: float) -> float:
                peak, end = config.sft.learning_rate, config.sft.min_learning_rate
                return warmup.cosine(peak, end, (state.epoch + done) / epochs)

            params, opt_state, values = warmup.sft_epoch(
                steps, params, opt_state, lessons, this.policy, config.seed, state.epoch,
                config.sft.batch_paths, config.sft.context_weight, shape, rate, vary,
            )  # fmt: skip
            values["time/update_s"] = time.perf_counter() - start
            state.epoch += 1
            state.step += 1
            shown = {"loss": values["train/loss"]}
            looks = state.epoch % config.sft.panel_every == 0 or state.epoch == epochs
            if looks and config.sft.panel:
                results = _play(this, "L0", config.sft.panel, params)
                success = sum(r.success for r in results) / len(results)
                state.panels.append(success)
                values["sft/panel_success_rate"] = shown["L0"] = success
            values["time/compilations"] = compilations() - compiled
            this.metrics.write(state.step, "sft", values)
            if looks and state.epoch < epochs:
                _save(this, params, opt_state)
            progress.advance(**shown)
    opt_state = _optimiser_state(config, this.policy, params, warm=True)
    _finish_warm_up(this, params, opt_state)
    return params, opt_state


def _finish_warm_up(this: Run, params: Any, opt_state: Any) -> None:
    this.checkpoints.save_reference(params)
    this.state.warm = True
    this.state.step += 1
    _save(this, params, opt_state)


def _borrow_evaluation(this: Run) -> bool:
    """Takes over the evaluation after the warm-up of `sft.from_run`, where it is the same."""
    entry = borrow.evaluation(this.config, this.workdir, AFTER_WARMUP, this.state.step)
    if entry is None:
        return False
    this.metrics.write(this.state.step, "eval", eval_metrics(entry))
    this.state.evaluated.append(AFTER_WARMUP)
    return True


def _more_warm_up(this: Run, examples, params: Any, opt_state: Any) -> tuple[Any, Any]:
    """The control: SFT goes on for `sft.extra_seconds`, its learning rate falling from a third of
    the warm-up's to its end. Wall time decides; interrupted, this phase starts over."""
    config, state = this.config, this.state
    steps, end = sft_steps(config, this.policy), config.sft.extra_seconds
    shape, lessons, vary = _sft_data(this, examples)
    start = time.perf_counter()

    def rate(done: float) -> float:
        low = config.sft.min_learning_rate
        peak = max(low, config.sft.learning_rate / 3)
        share = min(1.0, (time.perf_counter() - start) / max(end, 1e-9))
        return warmup.cosine(peak, low, max(share, 0.05))

    with Progress("more SFT", max(1, int(end)), "second") as progress:
        while lessons and time.perf_counter() - start < end:
            began = time.perf_counter()
            params, opt_state, values = warmup.sft_epoch(
                steps, params, opt_state, lessons, this.policy, config.seed, 10_000 + state.epoch,
                config.sft.batch_paths, config.sft.context_weight, shape, rate, vary,
            )  # fmt: skip
            values["time/update_s"] = time.perf_counter() - began
            state.epoch += 1
            state.step += 1
            this.metrics.write(state.step, "sft", values)
            progress.advance(max(1, int(time.perf_counter() - began)), loss=values["train/loss"])
    return params, opt_state


def _sft_data(this: Run, examples) -> tuple[tuple[int, int, int], list[warmup.Lesson], Callable]:
    """Shape of the learner's batches, the dialogues that fit, and what varies them by epoch."""
    train, sft = this.config.train, this.config.sft
    # Where what the environment wrote has a weight, every token is a target.
    targets = train.row_tokens if sft.context_weight else train.row_targets
    shape = (train.row_tokens, targets, rows_of_micro_batch(this.config, this.policy))
    lessons = _lessons(this, examples)
    vary = warmup.variation(
        lessons, this.policy, train.row_tokens, sft.rename, sft.slips, this.world
    )
    return shape, lessons, vary


def _lessons(this: Run, examples) -> list[warmup.Lesson]:
    return warmup.make_lessons(examples, this.policy, this.config.train.row_tokens, this.world)


def _reinforce(this: Run, examples, params: Any, opt_state: Any) -> tuple[Any, Any]:
    """RL: rollout, update, metrics, trees, checkpoint; `rl.iterations` times, or until
    `rl.sampled_tokens` have been sampled."""
    config, state = this.config, this.state
    steps = rl_steps(config, this.policy)
    reference = this.checkpoints.restore_reference(params)
    train, pairs = this.world.train, config.algo.name == "eto"
    if config.rl.train_on == "unseen":
        train = unseen(train, (example.task for example in examples))
    elif config.rl.train_on == "seen":
        train = seen(train, (example.task for example in examples))
    lessons = _lessons(this, examples) if pairs or config.rl.rename else []
    experts = warmup.whole_dialogues(lessons) if pairs else {}
    swap_for = None
    if config.rl.rename:
        swap_for = swapper(
            [lesson.tree for lesson in lessons], this.policy.codec.token_bytes(), config.rl.rename,
            this.world.known_names, this.world.names,
        )  # fmt: skip
    total = iterations_in_all(config, state.sampled)
    with Progress("rl", total, "iteration", done=state.iteration) as progress:
        while not rl_is_over(config, state.sampled):
            compiled, leaves = compilations(), 0

            def on_tree(tree: Tree) -> None:
                nonlocal leaves
                leaves += len(tree.leaf_ids())
                progress.note(f"{leaves} leaves")

            trees, values = rollout(
                config, state.iteration, train, params, this.engine,
                this.environments, this.dialogue, swap_for, on_tree, state.forks,
                state.rates, state.mixed,
            )  # fmt: skip
            state.sampled.append(values["rollout/response_tokens"])
            learner = functools.partial(learn_pairs, experts=experts) if pairs else learn
            params, opt_state, learned = learner(
                config, state.iteration, trees, steps=steps, policy=this.policy, params=params,
                opt_state=opt_state, reference=reference, sampled=state.sampled,
            )  # fmt: skip
            values |= learned
            if config.tree.signal == "calibrated":
                state.forks = count_forks(state.forks, trees, config.tree.signal_rise)
                values |= reliabilities(state.forks)
            if config.tree.adapt:
                state.rates = count_successes(state.rates, trees)
            if config.rl.types == "mixed":
                state.mixed = count_mixed(state.mixed, trees)
            values["time/compilations"] = compilations() - compiled
            write_trees(this.workdir, state.iteration, trees)
            state.iteration += 1
            state.step += 1
            values["rl/iteration"] = state.iteration
            this.metrics.write(state.step, "rl", values)
            last = rl_is_over(config, state.sampled)
            if config.eval.every and state.iteration % config.eval.every == 0 and not last:
                _evaluate(this, f"iteration {state.iteration}", params)
            if last or state.iteration % config.checkpoint.every == 0:
                _save(this, params, opt_state)
            progress.expect(iterations_in_all(config, state.sampled))
            progress.advance(
                tokens=values["rollout/response_tokens"],
                success=values["rollout/success_rate"],
                explore=values["rollout/explore_rate"],
                **{
                    name: values[f"train/{name}"]
                    for name in ("pairs", "kl")
                    if f"train/{name}" in values
                },
            )
    return params, opt_state


# --- evaluation -------------------------------------------------------------------------------


def _play(this: Run, split: str, episodes: int, params: Any, on_episode=None):
    config = this.config
    tasks = this.world.splits[split]
    chosen = panel(tasks, episodes or len(tasks), 0)  # one panel for all seeds
    return play_panel(
        chosen, params, this.engine, this.environments, this.dialogue,
        episode_rule(config), limits(config), config.seed, config.eval.temperature,
        config.rollout.deterministic, on_episode,
    )  # fmt: skip


def _evaluate(this: Run, name: str, params: Any) -> None:
    """Plays the panels of all splits and records them in eval.json and metrics.jsonl."""
    config, splits = this.config, {}
    start = time.perf_counter()
    for split in config.eval.splits:
        tasks = this.world.splits[split]
        total = min(config.eval.episodes or len(tasks), len(tasks))
        with Progress(f"{name}, {split}", total, "episode") as progress:
            tell = _episode_counter(progress, total)
            splits[split] = _play(this, split, config.eval.episodes, params, tell)
    entry = add_evaluation(this.workdir, name, this.state.step, config.eval.temperature, splits)
    values = eval_metrics(entry) | {"time/eval_s": time.perf_counter() - start}
    this.metrics.write(this.state.step, "eval", values)
    this.state.evaluated.append(name)


def _episode_counter(progress: Progress, total: int) -> Callable[[EpisodeResult], None]:
    """Reports each episode on a terminal, and elsewhere all of them in one line."""
    successes = seen = 0

    def tell(result: EpisodeResult) -> None:
        nonlocal successes, seen
        successes, seen = successes + result.success, seen + 1
        if progress.is_terminal or seen == total:
            progress.advance(1 if progress.is_terminal else total, success=successes / seen)

    return tell
