"""The SFT warm-up: expert dialogues, as trees without forks, through the learner's own step."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spark_jax.envs.response import parse_response
from spark_jax.envs.tasks import distinct_tasks
from spark_jax.envs.trajectory import Trajectory
from spark_jax.envs.window import Window, window_message
from spark_jax.learn.credit import likelihood_normaliser, sft_weights
from spark_jax.learn.pack import chain_tree, micro_batches, pack_trees
from spark_jax.learn.rows import to_pack
from spark_jax.learn.step import Steps, mean_metrics, optimiser_step, put_batch
from spark_jax.run.files import write_text
from spark_jax.run.policy import Policy, to_host
from spark_jax.run.rename import WORDS, name_tokens, renamed
from spark_jax.run.slips import spoken_words, with_slips
from spark_jax.run.worlds import World
from spark_jax.types import PastStep, Task, Tree, UserError


class Example(NamedTuple):
    """One expert dialogue as texts."""

    task: Task
    system: str
    user: str
    turns: list[tuple[str, str]]  # (response, observation it brings)


def expert_examples(
    world: World,
    count: int,
    seed: int,
    workers: int,
    cache: Path | None,
    on_done: Callable[[int, int], None],
) -> list[Example]:
    """Expert dialogues of `count` train tasks, all different; fewer if some have none.

    A held-out type cannot come up: only the world's train tasks are asked for.
    """
    tasks = distinct_tasks(world.train, count, seed)
    paths = world.experts(tasks, workers, cache, on_done)
    return [as_example(world, path) for path in paths]


def as_example(world: World, path: Trajectory) -> Example:
    """The texts of an expert's path in this world."""
    return Example(path.task, world.system, world.first_message(path.start), [*world.turns(path)])


def save_examples(path: Path, examples: Sequence[Example]) -> None:
    """One JSON object a line; also the record of what the warm-up has seen."""
    lines = [json.dumps({**e._asdict(), "task": vars(e.task)}) + "\n" for e in examples]
    write_text(path, "".join(lines))


def load_examples(path: Path) -> list[Example]:
    return [read_row(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def read_row(row: dict[str, Any]) -> Example:
    """One object of such a file."""
    turns = [(response, observation) for response, observation in row["turns"]]
    return Example(Task(**row["task"]), row["system"], row["user"], turns)


def given_examples(path: Path, world: World, count: int) -> list[Example]:
    """The first `count` dialogues of a file that was made elsewhere (`sft.dialogues`).

    Raises UserError: no such file, a damaged line, a task that is no train task of this world
    (held-out ones must not be trained on), or prompts of another style.
    """
    try:
        examples = load_examples(path)
    except OSError as error:
        raise UserError(
            f"config.sft.dialogues={path} cannot be read ({error.strerror}); name a file that "
            "spark_jax.annotate wrote."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"config.sft.dialogues={path} holds no dialogues ({type(error).__name__}: {error}); "
            "name a file that spark_jax.annotate wrote."
        ) from None
    train = {task for tasks in world.train.values() for task in tasks}
    for number, example in enumerate(examples, 1):
        if example.task not in train:
            raise UserError(
                f"line {number} of config.sft.dialogues={path} is about {example.task.type} "
                f"variation {example.task.variation}, which is no train task of this run; annotate "
                "paths with the same config.env keys."
            )
        if example.system != world.system:
            raise UserError(
                f"line {number} of config.sft.dialogues={path} has another system prompt than this "
                "run; annotate paths with the same config.env.prompt."
            )
    return examples[:count]


def texts(examples: Sequence[Example]) -> list[str]:
    """All texts of the dialogues: what a vocabulary is learned from."""
    out = []
    for example in examples:
        out += [example.system, example.user]
        out += [text for turn in example.turns for text in turn]
    return out


def dialogue_tree(
    example: Example, policy: Policy, row_tokens: int, window: Window, refusal: str = ""
) -> Tree | None:
    """The dialogue as a tree with one leaf, cut after the last turn that fits a row of the
    learner (with a `window` each turn is a row of its own); None if not even the first one does.
    Responses that `refusal` answers are marked as not understood: they are not imitated."""
    codec = policy.codec
    past = [PastStep(parse_response(said).action, seen) for said, seen in example.turns]
    prompt = codec.encode_prompt(example.system, example.user)
    used, turns = len(prompt), []
    for i, (text, observation) in enumerate(example.turns, 1):
        response = codec.encode_response(text)
        if used + len(response) > row_tokens:
            break
        if window.steps:
            user = window_message(example.user, past[:i], window)
            context = codec.encode_prompt(example.system, user)
            used = len(context)
        else:
            context = codec.encode_turn(observation, ended=False)
            used += len(response) + len(context)
        turns.append((response, context))
    if not turns:
        return None
    tree = chain_tree(prompt, turns, example.task, rebuilt=window.steps > 0)
    for node, (_, observation) in zip(tree.nodes[1:], example.turns, strict=False):
        node.valid = not refusal or observation != refusal
    return tree


class Lesson(NamedTuple):
    """A dialogue to learn, as it is."""

    example: Example
    tree: Tree


def make_lessons(
    examples: Sequence[Example], policy: Policy, row_tokens: int, world: World
) -> list[Lesson]:
    """Those dialogues that fit, in order."""
    trees = (
        dialogue_tree(example, policy, row_tokens, world.window, world.refusal)
        for example in examples
    )
    return [
        Lesson(example, tree)
        for example, tree in zip(examples, trees, strict=True)
        if tree is not None
    ]


def whole_dialogues(lessons: Sequence[Lesson]) -> dict[Task, Tree]:
    """The dialogue of each task, where it fits a row from beginning to end."""
    return {e.task: tree for e, tree in lessons if len(tree.nodes) == len(e.turns) + 1}


def variation(
    lessons: Sequence[Lesson],
    policy: Policy,
    row_tokens: int,
    rename: float,
    slips: float,
    world: World,
) -> Callable[[Lesson, random.Random], Tree]:
    """Renames a share of the dialogues (run/rename.py), none of the task types in
    `world.known_names`, and gets a share of their actions wrong first (run/slips.py), none where
    the world has no refusal."""
    trees = [lesson.tree for lesson in lessons]
    names = name_tokens(trees, policy.codec.token_bytes(), world.names) if rename else []
    slip = slips > 0 and bool(world.refusal)
    words = spoken_words(lesson.example.turns for lesson in lessons) if slip else []

    def vary(lesson: Lesson, rng: random.Random) -> Tree:
        example, tree = lesson
        if slip:
            turns = with_slips(
                example.user, example.turns, slips, words, world.refusal, world.retry, rng,
                world.judgement,
            )  # fmt: skip
            longer = example._replace(turns=turns)
            tree = dialogue_tree(longer, policy, row_tokens, world.window, world.refusal) or tree
        if not names or tree.task.type in world.known_names or rng.random() >= rename:
            return tree
        return renamed(tree, names, WORDS, rng)

    return vary


def cosine(peak: float, end: float, done: float) -> float:
    """Learning rate after a share `done` of the warm-up: a twentieth of it rises, then a cosine
    falls from `peak` to `end`."""
    if done < 0.05:
        return peak * max(done, 0.002) / 0.05
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - 0.05) / 0.95)))


def stopped_rising(panels: list[float], patience: int) -> bool:
    """No panel of the last `patience` is better than the best one before them."""
    if not patience or len(panels) <= patience:
        return False
    return max(panels[-patience:]) <= max(panels[:-patience])


def sft_epoch(
    steps: Steps,
    params: Any,
    opt_state: Any,
    lessons: Sequence[Lesson],
    policy: Policy,
    seed: int,
    epoch: int,
    batch_paths: int,
    context_weight: float,
    shape: tuple[int, int, int],
    rate: Callable[[float], float],
    vary: Callable[[Lesson, random.Random], Tree],
) -> tuple[Any, Any, dict[str, float]]:
    """One pass over the dialogues in an order drawn from (seed, epoch).

    Args:
      context_weight: of a token of an observation or of the prompt, beside 1 of a response.
      shape: (row_tokens, row_targets, rows of a micro-batch).
      rate: learning rate after a share of this epoch.
      vary: gives the tree to learn from a dialogue (`variation`).
    """
    row_tokens, row_targets, rows = shape
    order, rng = list(lessons), random.Random(f"warm-up {seed} {epoch}")
    rng.shuffle(order)
    trees = [vary(lesson, rng) for lesson in order]
    groups = [trees[i : i + batch_paths] for i in range(0, len(trees), batch_paths)]
    total, packed = [], 0
    for i, group in enumerate(groups):
        rows_of = [to_pack(tree, sft_weights(tree, context_weight)) for tree in group]
        items = [(row.tree, row.weights) for row in rows_of]
        batch, stats = pack_trees(items, row_tokens, row_targets, rows)
        batches = [put_batch(b, policy.mesh) for b in micro_batches(batch, rows)]
        z = likelihood_normaliser(items)
        params, opt_state, metrics = optimiser_step(
            steps, params, opt_state, batches, z, rate(i / len(groups))
        )
        total.append(metrics)
        packed += stats.packed_tokens
    host = [to_host(metrics) for metrics in total]
    mean = {f"train/{name}": value for name, value in mean_metrics(host).items()}
    return params, opt_state, {**mean, "train/packed_tokens": packed}
