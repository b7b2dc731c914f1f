"""The phases of supervised training: the warm-up, and its continuation as a control."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from typing import Any

from spark_jax.run import warmup
from spark_jax.run.compilations import compilations
from spark_jax.run.panels import play
from spark_jax.run.policy import rows_of_micro_batch, sft_steps
from spark_jax.run.progress import Progress
from spark_jax.run.state import Run, phase_steps, save

_PART = 4  # steps of the control between two looks at the clock


def warm_up(this: Run, examples, params: Any, opt_state: Any) -> tuple[Any, Any]:
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
                results = play(this, "L0", config.sft.panel, params)
                success = sum(r.success for r in results) / len(results)
                state.panels.append(success)
                values["sft/panel_success_rate"] = shown["L0"] = success
            values["time/compilations"] = compilations() - compiled
            this.metrics.write(state.step, "sft", values)
            if looks and state.epoch < epochs:
                save(this, params, opt_state)
            progress.advance(**shown)
    opt_state = phase_steps(config, this.policy, warm=True).init(params)
    finish_warm_up(this, params, opt_state)
    return params, opt_state


def finish_warm_up(this: Run, params: Any, opt_state: Any) -> None:
    """`params` are the reference from here on."""
    this.checkpoints.save_reference(params)
    this.state.warm = True
    this.state.step += 1
    save(this, params, opt_state)


def more_warm_up(this: Run, examples, params: Any, opt_state: Any) -> tuple[Any, Any]:
    """The control: SFT goes on for `sft.extra_seconds`, its learning rate falling from a third of
    the warm-up's to its end. Wall time decides, looked at every `_PART` steps; interrupted, this
    phase starts over."""
    config, state = this.config, this.state
    steps, end = sft_steps(config, this.policy), config.sft.extra_seconds
    shape, lessons, vary = _sft_data(this, examples)
    start = time.perf_counter()

    def rate(done: float) -> float:
        low = config.sft.min_learning_rate
        peak = max(low, config.sft.learning_rate / 3)
        share = min(1.0, (time.perf_counter() - start) / max(end, 1e-9))
        return warmup.cosine(peak, low, max(share, 0.05))

    part = config.sft.batch_paths * _PART
    todo: list[warmup.Lesson] = []
    order, parts = random.Random(f"more SFT {config.seed}"), itertools.count(10_000)
    with Progress("more SFT", max(1, int(end)), "second") as progress:
        while lessons and (spent := time.perf_counter() - start) < end:
            if not todo:  # every dialogue once before any comes again
                todo = order.sample(lessons, len(lessons))
            now, todo = todo[:part], todo[part:]
            params, opt_state, values = warmup.sft_epoch(
                steps, params, opt_state, now, this.policy, config.seed, next(parts),
                config.sft.batch_paths, config.sft.context_weight, shape, rate, vary,
            )  # fmt: skip
            after = time.perf_counter() - start
            values["time/update_s"] = after - spent
            state.step += 1
            this.metrics.write(state.step, "sft", values)
            if seconds := int(after) - int(spent):
                progress.advance(seconds, loss=values["train/loss"])
    return params, opt_state


def _sft_data(this: Run, examples) -> tuple[tuple[int, int, int], list[warmup.Lesson], Callable]:
    """Shape of the learner's batches, the dialogues that fit, and what varies them by epoch."""
    train, sft = this.config.train, this.config.sft
    # Where what the environment wrote has a weight, every token is a target.
    targets = train.row_tokens if sft.context_weight else train.row_targets
    shape = (train.row_tokens, targets, rows_of_micro_batch(this.config, this.policy))
    lessons = lessons_of(this, examples)
    vary = warmup.variation(
        lessons, this.policy, train.row_tokens, sft.rename, sft.slips, this.world
    )
    return shape, lessons, vary


def lessons_of(this: Run, examples) -> list[warmup.Lesson]:
    """The dialogues of the warm-up that fit in the learner's rows."""
    return warmup.make_lessons(examples, this.policy, this.config.train.row_tokens, this.world)
