"""A large model as teacher: it writes the thought before each step of an expert's path.

The actions stay the expert's. What comes out are warm-up dialogues (`sft.dialogues=FILE`) in the
form that runs keep their own in (run/warmup.py).
"""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from spark_jax.envs.pool import default_workers, usable_cores
from spark_jax.envs.response import parse_response
from spark_jax.envs.tasks import distinct_tasks
from spark_jax.envs.trajectory import ExpertStep, Trajectory
from spark_jax.keep import cache_folder
from spark_jax.run.completion import Complete, Message, Prices, TooLong, cost
from spark_jax.run.progress import Progress
from spark_jax.run.recorded import append_rows, open_journal, played_by
from spark_jax.run.warmup import Example, as_example, read_row, save_examples
from spark_jax.run.worlds import World, make_world
from spark_jax.threads import in_threads
from spark_jax.types import Task, UserError

LONGEST = 30  # words of a thought; our own have 17 at most
SYSTEM = (
    "You write down what an expert player of a text game thinks. You are shown the task, what "
    "happened so far, and the expert's next action. Write the thought that leads to this action: "
    f"one short sentence of at most {LONGEST - 5} words, in plain words, that uses only what was "
    "seen so far.\n"
    "Answer with exactly one block and nothing else. Usually:\n"
    "<think>what is known and done next</think>\n"
    "Where the expert stands at a real choice between several ways, and does not know which is "
    "best, write instead:\n"
    "<explore>which ways there are and which is tried</explore>"
)


class Thought(NamedTuple):
    reasoning: str
    explore: bool


class Annotated(NamedTuple):
    """A path with the teacher's thoughts, and what they took."""

    path: Trajectory
    fallbacks: int  # steps that kept our own thought
    requests: int
    prompt_tokens: int
    response_tokens: int


def read_thought(text: str) -> Thought:
    """The thought in an answer. Raises ValueError that says what is wrong with it."""
    match = re.fullmatch(r"\s*<(think|explore)>([^<>]*)</\1>\s*", text)
    if not match:
        raise ValueError("it is not exactly one <think>…</think> or <explore>…</explore> block")
    reasoning = " ".join(match[2].split())
    if not reasoning:
        raise ValueError("the block is empty")
    if len(reasoning.split()) > LONGEST or len(reasoning) > 8 * LONGEST:
        raise ValueError(f"it is longer than {LONGEST} words")
    if re.search(r"[.!?]\s+\S", reasoning):
        raise ValueError("it is more than one sentence")
    return Thought(reasoning, match[1] == "explore")


def question(path: Trajectory, done: Sequence[ExpertStep], first_message: str) -> list[Message]:
    """Asks for the thought before the step that follows those `done`, without what comes later."""
    lines = [first_message, ""]
    for step in done:
        lines += [f"Thought: {step.reasoning}", f"Action: {step.action}", step.observation, ""]
    lines.append(f"The expert's next action: {path.steps[len(done)].action}")
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "\n".join(lines)},
    ]


def annotate_path(path: Trajectory, world: World, complete: Complete, tries: int) -> Annotated:
    """The path with the teacher's thoughts; a step keeps our own after `tries` bad answers.

    On the last step no fork can follow, so an explore tag becomes a think tag there.
    """
    done: list[ExpertStep] = []
    fallbacks = requests = prompt_tokens = response_tokens = 0
    for step in path.steps:
        messages = question(path, done, world.first_message(path.start))
        thought = None
        for _ in range(tries):
            requests += 1
            try:
                answer = complete(messages)
            except TooLong:  # nor would another try be shorter
                break
            prompt_tokens += answer.prompt_tokens
            response_tokens += answer.response_tokens
            try:
                thought = read_thought(answer.text)
                break
            except ValueError as error:
                complaint = f"This answer cannot be used: {error}. Answer with the block alone."
                messages += [
                    {"role": "assistant", "content": answer.text.strip() or "(nothing)"},
                    {"role": "user", "content": complaint},
                ]
        fallbacks += thought is None
        if thought is not None:
            explore = thought.explore and step is not path.steps[-1]
            others = step.alternatives if explore else ()
            step = step._replace(reasoning=thought.reasoning, explore=explore, alternatives=others)
        done.append(step)
    path = dataclasses.replace(path, steps=tuple(done))
    return Annotated(path, fallbacks, requests, prompt_tokens, response_tokens)


def annotate_paths(
    config: ConfigDict,
    out: Path,
    count: int,
    complete: Complete,
    about: Mapping[str, Any],
    prices: Prices,
    concurrency: int,
    tries: int,
    stop: threading.Event,
) -> dict[str, Any]:
    """Writes dialogues of `count` train tasks to `out`: those that the warm-up would take.

    Paths are kept in OUT.journal as they are done, so that none is paid twice; `out` itself is
    there whole or not at all.

    Returns:
      `paths`, `steps`, `explores`, `fallbacks`, `requests`, tokens and cost, of all paths in `out`.

    Raises:
      UserError: the endpoint fails for good, no path was found, or `out` cannot be written.
    """
    world = make_world(config)
    head = {
        "endpoint": dict(about),
        "system": SYSTEM,
        "tries": tries,
        "config": played_by(config, ("env.", "seed")),
    }
    journal = out.with_name(out.name + ".journal")
    known: dict[Task, tuple[Example, dict[str, int]]] = {}
    for row in open_journal(journal, head):
        example = read_row(row["example"])
        known[example.task] = (example, row["counts"])
    paths = _expert_paths(world, distinct_tasks(world.train, count, config.seed))
    if not paths:
        raise UserError("the experts solve none of the tasks; choose others with env.tasks.")
    left = [path for path in paths if path.task not in known]

    def work(_: int, path: Trajectory) -> Annotated:
        return annotate_path(path, world, complete, tries)

    with Progress("annotated paths", len(paths), "path", len(paths) - len(left)) as progress:

        def record(_: Trajectory, done: Annotated) -> None:
            example = as_example(world, done.path)
            counts = {name: value for name, value in done._asdict().items() if name != "path"}
            row = {**example._asdict(), "task": vars(example.task)}
            append_rows(journal, [{"example": row, "counts": counts}])
            known[example.task] = (example, counts)
            progress.advance(fallbacks=sum(c["fallbacks"] for _, c in known.values()))

        in_threads(work, left, range(concurrency), record, stop)
    chosen = [known[path.task] for path in paths]
    save_examples(out, [example for example, _ in chosen])
    responses = [response for example, _ in chosen for response, _ in example.turns]
    total = {name: sum(counts[name] for _, counts in chosen) for name in Annotated._fields[1:]}
    return {
        "paths": len(paths),
        "steps": len(responses),
        "explores": sum(parse_response(r).kind == "explore" for r in responses),
        "cost": cost(total["prompt_tokens"], total["response_tokens"], prices),
        **total,
    }


def _expert_paths(world: World, tasks: list[Task]) -> list[Trajectory]:
    workers = min(usable_cores(), default_workers())
    cache = cache_folder("gold")
    with Progress("expert paths", len(tasks), "path") as progress:
        return world.experts(
            tasks, workers, cache, lambda i, total: progress.note(f"{i} of {total}")
        )
