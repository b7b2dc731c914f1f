"""Episodes of a model that is only prompted, and that is not ours: any function from messages to
text plays them, on the same panels and with the same measures as checkpoints. No JAX here.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from spark_jax.envs.pool import EnvPool, default_workers
from spark_jax.envs.response import parse_response
from spark_jax.envs.window import window_message
from spark_jax.rollout.dialogue import NO_ACTION
from spark_jax.run.completion import Complete, Message, Prices, TooLong, cost
from spark_jax.run.evalfile import EpisodeResult, add_evaluation, episode_result
from spark_jax.run.progress import Progress
from spark_jax.run.recorded import Recorded, panel_of, played_by
from spark_jax.run.worlds import World, make_world
from spark_jax.threads import in_threads
from spark_jax.types import Node, PastStep, StepResult, Task, Tree, UserError

_END = "</action>"


class Prompted(NamedTuple):
    """What to evaluate; the fields are those of evaluator.Request."""

    name: str
    splits: tuple[str, ...]
    episodes: int = 0
    samples: int = 1


def with_full_prompts(config: ConfigDict, splits: Sequence[str]) -> ConfigDict:
    """The config for a model from outside, which has to be told the rules."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.env.prompt = "full"
        config.eval.splits = tuple(splits)
    return config


def evaluate_prompted(
    config: ConfigDict,
    workdir: Path,
    request: Prompted,
    complete: Complete,
    about: Mapping[str, Any],
    prices: Prices = Prices(),  # noqa: B008, a tuple
    concurrency: int = 4,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Plays what `request` asks for and is not played yet; returns the entry of `eval.json`.

    Every episode is written down as it ends. An error ends the evaluation once the episodes that
    are being played have ended too.

    Args:
      about: of the model, for the files; episodes under another description are not taken over.
      concurrency: episodes at the same time, `env.workers` at most.
      stop: set when the evaluation is interrupted; `complete` should then raise.
    """
    stop = stop or threading.Event()
    config = with_full_prompts(config, request.splits)
    world = make_world(config)
    workers = min(concurrency, config.env.workers or default_workers())
    head = {"endpoint": dict(about), "config": played_by(config, ("env.",))}
    file = workdir / "evaluations" / f"{request.name}.jsonl"
    results: dict[str, list[EpisodeResult]] = {}
    with contextlib.ExitStack() as stack:
        environments = [stack.enter_context(EnvPool(world.make_env, 1)) for _ in range(workers)]

        def play(environment: EnvPool, job: tuple[int, Task]) -> EpisodeResult:
            return play_episode(job[1], world, environment, complete, config.env.max_steps)

        for split in request.splits:
            tasks = panel_of(world, split, request.episodes)
            jobs = [(sample, task) for sample in range(request.samples) for task in tasks]
            done = Recorded(file, head, split)
            _play_split(f"{request.name}, {split}", jobs, done, play, environments, prices, stop)
            results[split] = done.results(tasks, request.samples)
    spent = spent_on([result for split in results.values() for result in split], prices)
    temperature = about.get("temperature", 0.0)
    return add_evaluation(
        workdir, request.name, 0, temperature, results,
        asked={"samples": request.samples, "config": head["config"]},
        endpoint={**about, **spent},
    )  # fmt: skip


def _play_split(phase: str, jobs, done: Recorded, play, environments, prices, stop) -> None:
    """Plays those of the jobs (sample, task) that are not recorded, and records them."""
    left = [job for job in jobs if job not in done]
    with Progress(phase, len(jobs), "episode", len(jobs) - len(left)) as progress:

        def record(job: tuple[int, Task], result: EpisodeResult) -> None:
            done.add(job[0], [result])
            spent = spent_on(done.finished(), prices)["cost"]
            progress.advance(success=done.success_rate(), cost=spent)

        in_threads(play, left, environments, record, stop)


def spent_on(results: Sequence[EpisodeResult], prices: Prices) -> dict[str, Any]:
    """Tokens and cost of episodes."""
    read, written = (sum(r.prompt_tokens for r in results), sum(r.response_tokens for r in results))
    return {
        "prompt_tokens": read,
        "response_tokens": written,
        "prices": prices._asdict(),
        "cost": cost(read, written, prices),
    }


def play_episode(
    task: Task, world: World, environment: EnvPool, complete: Complete, max_steps: int
) -> EpisodeResult:
    """One episode: the model sees the whole dialogue in every step, or as much as `env.history`
    says. The rules are those by which trees grow (rollout/expand.py): what follows the first
    complete action is dropped, a response without an action is a step that the environment does
    not see.

    Raises UserError when not even the first message fits the model's context.
    """
    try:
        return _play(task, world, environment, complete, max_steps)
    finally:
        environment.release(task)


def _play(
    task: Task, world: World, environment: EnvPool, complete: Complete, max_steps: int
) -> EpisodeResult:
    start = _answer(environment, task, (), None)
    messages: list[Message] = [{"role": "user", "content": world.first_message(start)}]
    if world.system:
        messages.insert(0, {"role": "system", "content": world.system})
    nodes = [Node(0, -1, 0, observation=start.observation)]
    past: tuple[PastStep, ...] = ()
    prompt_tokens = response_tokens = 0
    while nodes[-1].outcome is None:
        try:
            answer = complete(messages)
        except TooLong as error:
            if len(nodes) == 1:
                raise UserError(
                    f"the prompt of {task.type} does not fit the context of the model{error}; "
                    "choose a model with a longer one."
                ) from None
            nodes[-1].outcome = "token_limit"
            break
        prompt_tokens += answer.prompt_tokens
        response_tokens += answer.response_tokens
        text, end, _ = answer.text.partition(_END)
        text += end
        parsed = parse_response(text)
        if parsed.action:
            result = _answer(environment, task, past, parsed.action)
            past = (*past, PastStep(parsed.action, result.observation))
        else:
            result = StepResult(NO_ACTION, nodes[-1].score, False, False, False)
        node = Node(
            len(nodes), len(nodes) - 1, len(nodes), response=text, action=parsed.action,
            observation=result.observation, spark=parsed.kind == "explore", valid=result.valid,
            score=result.score,
        )  # fmt: skip
        if result.done or result.success:
            node.outcome = "success" if result.success else "failure"
        elif node.step >= max_steps:
            node.outcome = "step_limit"
        nodes.append(node)
        if world.window.steps:
            shown = [PastStep(n.action, n.observation) for n in nodes[1:]]
            user = window_message(world.first_message(start), shown, world.window)
            messages = [*messages[:-1], {"role": "user", "content": user}]
        else:
            messages = [
                *messages,
                {"role": "assistant", "content": text or "(nothing)"},  # some refuse an empty text
                {"role": "user", "content": result.observation},
            ]
    result = episode_result(Tree(task, 1, 1, 1, "never", nodes))
    return result._replace(prompt_tokens=prompt_tokens, response_tokens=response_tokens)


def _answer(environment: EnvPool, task: Task, past: tuple[PastStep, ...], action: str | None):
    environment.submit(task, task, past, action)
    ((_, result),) = environment.collect()
    return result
