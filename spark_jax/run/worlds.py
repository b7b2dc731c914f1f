"""What an environment brings to a run: tasks, splits, prompts, experts."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from spark_jax.envs import metareasoning, toy
from spark_jax.envs.alfworld import expert as household
from spark_jax.envs.alfworld import tasks as alfworld
from spark_jax.envs.alfworld.environment import NOTHING, AlfWorldEnvironment
from spark_jax.envs.base import Environment
from spark_jax.envs.pool import default_workers, usable_cores
from spark_jax.envs.response import METAREASONING_RULES, RESPONSE_RULES, Kind
from spark_jax.envs.scienceworld import environment as scienceworld
from spark_jax.envs.scienceworld import expert
from spark_jax.envs.tasks import by_type
from spark_jax.envs.trajectory import ExpertStep, Trajectory, rendered_turns, winning_paths
from spark_jax.envs.window import WHOLE_PATH, Window
from spark_jax.run.slips import Judgement
from spark_jax.types import Start, Task, UserError

# experts(tasks, workers, cache folder, on_done) -> annotated trajectories
Experts = Callable[[list[Task], int, Path | None, Callable[[int, int], None]], list[Trajectory]]


class World(NamedTuple):
    make_env: Callable[[], Environment]
    train: dict[str, list[Task]]  # by task type
    splits: dict[str, list[Task]]  # those of eval.splits and L0, whole
    system: str
    first_message: Callable[[Start], str]
    experts: Experts
    known_names: tuple[str, ...] = ()  # task types in which a name tells what the thing is
    names: frozenset[str] = frozenset()  # words that renaming may swap; empty: all rare ones
    cut: str = "smollm"  # how a vocabulary of its own cuts the texts (models/tokenizer.train_bpe)
    source: str = ""  # where the tasks come from, for the user to read; "": there is one source
    refusal: str = ""  # answer to an action that is not understood, if it is always the same
    retry: Kind = "explore"  # tag of the step after one
    judgement: Judgement | None = None  # what is refused beside wrong words (run/slips.py)
    # (response, observation) of each step of an expert
    turns: Callable[[Trajectory], Sequence[tuple[str, str]]] = rendered_turns
    window: Window = WHOLE_PATH  # how much of a path a prompt shows


def make_world(config: ConfigDict) -> World:
    """The world that `config.env` names: one of ours, or MODULE:FUNCTION, a function of the config
    that returns a World (docs/environments.md). With `algo.name=rlvmr` its prompt and its experts
    use that method's tags."""
    history = config.env.get("history", 0)  # older work folders have no such key
    window = Window(history, config.env.prompt)
    world = _named_world(config)._replace(window=window)
    if config.algo.name != "rlvmr":
        return world
    return world._replace(
        system=world.system.replace(RESPONSE_RULES, METAREASONING_RULES),
        retry="reflection",
        turns=functools.partial(metareasoning.tagged_turns, refusal=world.refusal),
    )


def _named_world(config: ConfigDict) -> World:
    if ":" in config.env.name:
        world = _imported(config.env.name)(config)
        for split in _splits(config):
            if split not in world.splits:
                raise UserError(
                    f"{config.env.name} has no split {split}; it has {', '.join(world.splits)}: "
                    "set eval.splits."
                )
        return world
    worlds = {
        "scienceworld": _scienceworld,
        "alfworld": _alfworld,
        "webshop": _webshop,
        "toy": _toy,
    }
    name = config.env.name
    if name not in worlds:
        nearest = difflib.get_close_matches(name, worlds, 1, 0.0)[0]
        raise UserError(f"config.env.name is {name!r}; the nearest environment is {nearest}.")
    return worlds[name](config)


def tree_views(config: ConfigDict) -> Callable[[Mapping], dict[int, list]] | None:
    """What the report shows of a recorded tree's steps beside their texts (WebShop: the pages, as
    envs/webshop/views.py has them); None: nothing."""
    if config.env.name != "webshop":
        return None
    try:
        from spark_jax.envs.webshop import tasks, views
    except ImportError:  # a report can be made where the shop is not installed
        return None
    env = config.env
    human = tasks.people_wrote(env.tasks)
    return functools.partial(views.tree_pages, data_dir=env.data_dir, human=human, style=env.prompt)


def _imported(name: str) -> Callable[[ConfigDict], World]:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
        if not callable(found):
            raise AttributeError(f"{function} is no function")
        return found
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"config.env.name={name} cannot be imported ({error}): it has to be MODULE:FUNCTION, "
            "with the module on PYTHONPATH."
        ) from error


def _splits(config: ConfigDict) -> list[str]:
    """What has to be at hand: the warm-up watches L0 whatever is evaluated."""
    return list(dict.fromkeys(["L0", *config.eval.splits]))


def _scienceworld(config: ConfigDict) -> World:
    env = config.env
    splits = functools.partial(scienceworld.split_tasks, env.tasks, env.protocol)
    make_env = functools.partial(
        scienceworld.ScienceWorldEnvironment, env.simplification, env.success, env.prompt
    )
    return World(
        make_env=make_env,
        train=by_type(splits("train")),
        splits={split: splits(split) for split in _splits(config)},
        system=scienceworld.system_prompt(env.prompt),
        first_message=functools.partial(scienceworld.first_message, style=env.prompt),
        experts=functools.partial(_gold, env.prompt, env.simplification),
        known_names=scienceworld.KNOWN_NAMES,
        refusal=scienceworld.NOT_UNDERSTOOD,
    )


def _gold(style, simplification, tasks, workers, cache, on_done) -> list[Trajectory]:
    workers = min(workers, default_workers(scienceworld.GOLD_BYTES))
    return expert.gold_paths(tasks, workers, cache, on_done, style, simplification)


def _alfworld(config: ConfigDict) -> World:
    env = config.env
    splits = functools.partial(alfworld.split_tasks, env.tasks, env.protocol, env.data_dir)
    find_game = functools.partial(alfworld.find_game, env.data_dir)
    make_env = functools.partial(AlfWorldEnvironment, find_game, env.show_admissible)

    def experts(wanted, workers, cache, on_done) -> list[Trajectory]:
        count = max(1, min(workers, usable_cores(), len(wanted)))
        play = functools.partial(household.play_surely, max_steps=env.max_steps)
        with contextlib.ExitStack() as stack:
            envs = [stack.enter_context(contextlib.closing(make_env())) for _ in range(count)]
            return winning_paths(play, envs, wanted, env.max_steps, on_done)

    return World(
        make_env=make_env,
        train=by_type(splits("train")),
        splits={split: splits(split) for split in _splits(config)},
        system=alfworld.system_prompt(env.prompt),
        first_message=functools.partial(alfworld.first_message, style=env.prompt),
        experts=experts,
        names=alfworld.NAMES,
        judgement=Judgement("take", household.misjudged),
        source=alfworld.source(env.data_dir),
        refusal="" if env.show_admissible else NOTHING,  # the list follows, another each time
    )


def _webshop(config: ConfigDict) -> World:
    try:  # its packages are an extra
        from spark_jax.envs.webshop import environment, shopper, tasks
    except ImportError as error:
        raise UserError(
            f"WebShop needs a package more ({error}): pip install -e '.[webshop]'."
        ) from error
    env = config.env

    def split(which: str) -> list[Task]:
        return tasks.split_tasks(env.tasks, env.protocol, env.data_dir, which)

    human = tasks.people_wrote(env.tasks)
    make_env = functools.partial(environment.WebShopEnvironment, env.data_dir, human, env.prompt)

    def experts(wanted, workers, cache, on_done) -> list[Trajectory]:
        out = winning_paths(shopper.shop, [make_env()], wanted, env.max_steps, on_done)
        if wanted and not out:
            raise UserError(
                f"the scripted shopper wins none of {len(wanted)} goals of env.tasks={env.tasks} "
                f"within env.max_steps={env.max_steps}: use synthetic goals, or sft.trajectories=0."
            )
        return out

    return World(
        make_env=make_env,
        train=by_type(split("train")),
        splits={which: split(which) for which in _splits(config)},
        system=tasks.system_prompt(env.prompt),
        first_message=functools.partial(tasks.first_message, style=env.prompt),
        experts=experts,
        source=tasks.source(env.tasks, env.data_dir),
        cut="labels",  # "size: large": what a small model has to copy follows one token
        refusal=environment.REFUSED if env.prompt == "short" else "",
        judgement=Judgement("click", shopper.misjudged),
    )


def _toy(config: ConfigDict) -> World:
    name = "doors-2x4" if config.env.tasks == "default" else config.env.tasks

    def split(which: str) -> list[Task]:
        return toy.toy_tasks_of_type(name, which)

    return World(
        make_env=toy.ToyEnvironment,
        train=by_type(split("train")),
        splits={which: split(which) for which in _splits(config)},
        system=toy.SYSTEM if config.env.prompt == "full" else "",
        first_message=lambda start: f"{start.goal}\n{start.observation}",
        experts=_toy_experts,
        refusal=toy.NOT_UNDERSTOOD,
    )


def _toy_experts(tasks, workers, cache, on_done) -> list[Trajectory]:
    """Shortest paths; every door is a real choice."""
    out = []
    for task in tasks:
        env = toy.ToyEnvironment()
        start, steps = env.start(task), []
        for action in toy.solution(task):
            door = action.startswith("open")
            result = env.step(action)
            steps.append(ExpertStep(action, result.observation, "Pick a door.", door))
        out.append(Trajectory(task, start, tuple(steps), 100.0))
    return out
