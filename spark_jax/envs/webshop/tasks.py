"""WebShop's splits and prompts.

Goals are shuffled once (goals.py). L1 is the original's test set, goals 0-499; L0, for tuning, the
next ones; train the rest. A small shop gives at most a fifth to L1 and a tenth to L0.
A task type is a category of products; with the protocol "held_out" grocery is left out of train, L0
and L1, and L2 is its part of the test set.
"""

from __future__ import annotations

from spark_jax.envs.response import RESPONSE_RULES
from spark_jax.envs.webshop.environment import open_shop
from spark_jax.envs.webshop.pages import Style
from spark_jax.types import Start, Task, UserError

HELD_OUT = ("grocery",)
GOALS = {"default": False, "synthetic": False, "human": True}  # env.tasks -> people wrote them
MOST_TEST = 500


def split_tasks(tasks: str, protocol: str, data_dir: str, split: str) -> list[Task]:
    """All tasks of a split, by type and goal. Raises UserError for a split that is not there."""
    if split not in ("train", "L0", "L1", "L2"):
        raise UserError(f"The split {split!r} does not exist: use train, L0, L1 or L2.")
    held_out = HELD_OUT if protocol == "held_out" else ()
    if split == "L2" and not held_out:
        raise UserError(
            f"There is no L2 with env.protocol={protocol!r}: set env.protocol='held_out', or leave "
            "L2 out of eval.splits."
        )
    goals = open_shop(data_dir, people_wrote(tasks)).goals
    test = min(MOST_TEST, len(goals) // 5)
    dev = test + min(MOST_TEST, len(goals) // 10)
    part = {"L1": range(test), "L2": range(test), "L0": range(test, dev)}
    numbers = part.get(split, range(dev, len(goals)))
    chosen = [
        Task("webshop", goals[i].category, i, split=split)
        for i in numbers
        if (goals[i].category in held_out) == (split == "L2")
    ]
    if not chosen:
        raise UserError(f"WebShop's split {split} is empty in {data_dir or 'the embedded shop'}.")
    return sorted(chosen, key=lambda task: (task.type, task.variation))


def source(tasks: str, data_dir: str) -> str:
    """Which shop and which goals these are, for the user to read."""
    shop = open_shop(data_dir, people_wrote(tasks))
    kind = "written by people" if people_wrote(tasks) else "synthetic"
    return (
        f"WebShop: {data_dir or 'embedded shop'}, {len(shop.products):,} products, "
        f"{len(shop.goals):,} goals ({kind})"
    )


def people_wrote(tasks: str) -> bool:
    """Whether `env.tasks` means the human goals. Raises UserError for other words."""
    if tasks not in GOALS:
        raise UserError(
            f"env.tasks={tasks!r} is no kind of goals of WebShop: use {', '.join(GOALS)}."
        )
    return GOALS[tasks]


def system_prompt(style: Style) -> str:
    """The system text: empty for "short" (a model trained from scratch knows nothing else)."""
    if style == "short":
        return ""
    return (
        "You are an agent in a web shop. Buy what the instruction asks for. In each turn you see a "
        "page, its parts divided by [SEP], and choose one action.\n\n"
        "Actions:\n"
        "- search[words]: search for products\n"
        "- click[thing]: click a product's number, an option, a page or a button\n"
        "Choose the options that are asked for before you click[buy now], which ends the task.\n\n"
        + RESPONSE_RULES
    )


def first_message(start: Start, style: Style) -> str:
    """The first user message. The search page repeats the instruction and says no more."""
    return start.goal.removeprefix("Find me ") if style == "short" else start.observation
