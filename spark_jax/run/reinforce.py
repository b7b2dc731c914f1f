"""The phase of RL: rollout, update, metrics, trees, checkpoint, again and again."""

from __future__ import annotations

import functools
from typing import Any

from spark_jax.envs.tasks import seen, unseen
from spark_jax.rollout.adapt import count_successes
from spark_jax.rollout.curriculum import count_mixed
from spark_jax.rollout.reliability import count_forks, reliabilities
from spark_jax.run import warmup
from spark_jax.run.compilations import compilations
from spark_jax.run.iteration import iterations_in_all, learn, rl_is_over, rollout
from spark_jax.run.panels import evaluate
from spark_jax.run.policy import asks_reference, rl_steps
from spark_jax.run.preference import learn_pairs
from spark_jax.run.progress import Progress
from spark_jax.run.rename import swapper
from spark_jax.run.state import Run, save
from spark_jax.run.supervised import lessons_of
from spark_jax.run.treefile import write_trees
from spark_jax.types import Tree


def reinforce(this: Run, examples, params: Any, opt_state: Any) -> tuple[Any, Any]:
    """RL: rollout, update, metrics, trees, checkpoint; `rl.iterations` times, or until
    `rl.sampled_tokens` have been sampled."""
    config, state = this.config, this.state
    steps = rl_steps(config, this.policy)
    train, pairs = this.world.train, config.algo.name == "eto"
    reference = None
    if asks_reference(config):
        reference = this.checkpoints.restore_reference(params)
    if config.rl.train_on == "unseen":
        train = unseen(train, (example.task for example in examples))
    elif config.rl.train_on == "seen":
        train = seen(train, (example.task for example in examples))
    lessons = lessons_of(this, examples) if pairs or config.rl.rename else []
    learner = functools.partial(learn, reference=reference)
    if pairs:
        learner = functools.partial(learn_pairs, experts=warmup.whole_dialogues(lessons))
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
            params, opt_state, learned = learner(
                config, state.iteration, trees, steps=steps, policy=this.policy, params=params,
                opt_state=opt_state, sampled=state.sampled,
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
                evaluate(this, f"iteration {state.iteration}", params)
            if last or state.iteration % config.checkpoint.every == 0:
                save(this, params, opt_state)
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
