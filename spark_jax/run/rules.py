"""What the values of a config have to be, alone and together. No JAX here."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from spark_jax.run.defaults import flatten
from spark_jax.types import UserError

CHOICES: dict[str, tuple[str, ...]] = {
    "env.protocol": ("held_out", "all_types"),
    "env.success": ("strict", "loose"),
    "env.prompt": ("short", "full"),
    "model.preset": ("tiny", "nano", "smollm2", "qwen1.5b", "qwen7b"),
    "model.param_dtype": ("float32", "bfloat16"),
    "model.dtype": ("float32", "bfloat16"),
    "sft.optimizer": ("adamw", "muon"),
    "rl.train_on": ("all", "unseen", "seen"),
    "rl.reward": ("success", "score"),
    "rl.types": ("uniform", "mixed"),
    "rl.optimizer": ("adamw", "muon"),
    "rl.kl": ("k3", "k2"),
    "rollout.dtype": ("", "float32", "bfloat16"),
    "rollout.backend": ("auto", "xla", "native", "pallas", "pallas_interpret"),
    "tree.signal": ("explore", "entropy", "calibrated", "random", "always", "never"),
    "tree.fork_at": ("next_step", "same_step"),
    "algo.name": ("spark", "grpo", "gigpo", "rlvmr", "eto", "sft", "react"),
    "algo.advantage": ("leaf_group", "step_rows", "no_std", "sibling", "gigpo", "rlvmr", "mix"),
    "algo.leaf_weight": ("uniform", "path"),
    "algo.token_mean": ("step", "leaf"),
}
# Of ScienceWorld, which takes a name that it does not know, or "easy" among others, for none.
SIMPLIFICATIONS = (
    "teleportAction openDoors openContainers selfWateringFlowerPots noElectricalAction".split()
)
FROM_SCRATCH = ("tiny", "nano")  # presets without weights of their own
SPLITS = ("L0", "L1", "L2")

# Algorithms that sample separate episodes: a tree that never forks, with as many roots as leaves.
SEPARATE_EPISODES = ("grpo", "gigpo", "rlvmr", "eto")

# key -> (is this value good?, what it has to be). Keys not named here are free.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {}
for _key in (
    "env.max_steps tree.leaves tree.roots tree.branch sft.batch_paths sft.panel_every "
    "rl.tasks_per_iteration rl.minibatches train.row_tokens train.row_targets train.rows "
    "rollout.rows rollout.page_slots rollout.chunk rollout.response_tokens rollout.path_tokens "
    "mesh.fsdp mesh.tensor checkpoint.every checkpoint.keep"
).split():
    _RULES[_key] = (lambda value: value >= 1, "1 or more")
for _key in (
    "seed env.workers env.history sft.panel sft.trajectories sft.epochs sft.patience "
    "sft.weight_decay sft.context_weight "
    "rl.iterations rl.sampled_tokens rl.warmup_steps rl.kl_coef rl.dual_clip rl.entropy_coef "
    "rl.weight_decay algo.invalid_penalty rollout.pages sft.extra_seconds sft.min_learning_rate "
    "tree.signal_rise tree.patience eval.temperature eval.episodes eval.every mesh.data"
).split():
    _RULES[_key] = (lambda value: value >= 0, "0 or more")
for _key in "sft.learning_rate rl.learning_rate rl.grad_clip rl.temperature".split():
    _RULES[_key] = (lambda value: value > 0, "more than 0")
_RULES["env.simplification"] = (
    lambda value: value in ("", "easy") or set(value.split(",")) <= set(SIMPLIFICATIONS),
    f"easy, or some of {','.join(SIMPLIFICATIONS)} without easy, or empty",
)
_RULES["algo.similarity"] = (lambda value: 0 < value <= 1, "more than 0 and at most 1")
_RULES["rl.clip"] = (lambda value: 0 < value < 1, "between 0 and 1")
for _key in ("tree.signal_rate", "rl.decay_to", "sft.rename", "sft.slips", "rl.rename"):
    _RULES[_key] = (lambda value: 0 <= value <= 1, "between 0 and 1")


def check_config(config: ConfigDict) -> None:
    """Raises UserError naming the first key whose value cannot work."""
    values = flatten(config)
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"config.{key} is {value}; it has to be a finite number.")
        if key in CHOICES and value not in CHOICES[key]:
            nearest = _nearest(value, CHOICES[key])
            raise UserError(
                f"config.{key} is {value!r}{nearest}; choose one of {', '.join(CHOICES[key])}."
            )
        if key in _RULES and not _RULES[key][0](value):
            raise UserError(f"config.{key} is {value!r}; it has to be {_RULES[key][1]}.")

    tree = config.tree
    if tree.roots > tree.leaves:
        raise UserError(
            f"config.tree.roots is {tree.roots} but config.tree.leaves is {tree.leaves}; a tree "
            "cannot have more roots than leaves."
        )
    if tree.signal not in ("explore", "never") and tree.fork_at == "same_step":
        raise UserError(
            f"config.tree.signal is {tree.signal}, which looks at every step, but "
            "config.tree.fork_at=same_step can only fork at an <explore>; use "
            "config.tree.fork_at=next_step."
        )
    if config.algo.name in SEPARATE_EPISODES and tree.signal != "never":
        raise UserError(
            f"config.algo.name={config.algo.name} samples separate episodes, so config.tree.signal "
            f"has to be never, not {tree.signal}; trees are for config.algo.name=spark."
        )
    if config.algo.name in SEPARATE_EPISODES and tree.roots != tree.leaves:
        raise UserError(
            f"config.algo.name={config.algo.name} samples separate episodes, so config.tree.roots "
            f"({tree.roots}) has to equal config.tree.leaves ({tree.leaves})."
        )
    for key in ("tree.reinvest", "tree.adapt"):
        if config.algo.name in SEPARATE_EPISODES and values[key]:
            raise UserError(
                f"config.{key} changes the shape of trees, but config.algo.name="
                f"{config.algo.name} samples separate episodes; leave it at False."
            )
    if config.algo.name == "react":
        _check_prompted(config)
    if config.sft.dialogues and config.sft.from_run:
        raise UserError(
            "config.sft.dialogues and config.sft.from_run are both set; the warm-up of another run "
            "brings its own dialogues, so leave one out."
        )
    if config.sft.dialogues and config.algo.name == "rlvmr":
        raise UserError(
            "config.sft.dialogues are written with <think> and <explore>, but "
            "config.algo.name=rlvmr makes its own warm-up with four tags; leave sft.dialogues out."
        )
    if config.algo.advantage == "rlvmr" and config.algo.name != "rlvmr":
        raise UserError(
            "config.algo.advantage=rlvmr rewards the tags of config.algo.name=rlvmr, which the "
            f"responses of config.algo.name={config.algo.name} do not have; change one of the two."
        )
    if config.algo.similarity < 1 and config.algo.advantage != "gigpo":
        raise UserError(
            f"config.algo.similarity is {config.algo.similarity}, which groups the states of "
            f"config.algo.advantage=gigpo, not of {config.algo.advantage}; leave it at 1.0."
        )
    if config.algo.name == "eto":
        unused = {
            "algo.advantage": config.algo.advantage != "leaf_group",
            "algo.invalid_penalty": bool(config.algo.invalid_penalty),
            "rl.rename": bool(config.rl.rename),  # the expert's names would be other ones
        }
        for key, is_set in unused.items():
            if is_set:
                raise UserError(
                    f"config.{key} is {values[key]}, but config.algo.name=eto learns from pairs "
                    "of paths, as they are, and nothing else; leave that key at its default."
                )
    if config.rl.sampled_tokens and not config.rl.iterations:
        raise UserError(
            f"config.rl.sampled_tokens is {config.rl.sampled_tokens}, but config.rl.iterations is "
            "0, which means no RL; leave rl.iterations at its default."
        )
    if config.rl.train_on == "seen" and not (config.sft.trajectories or config.sft.from_run):
        raise UserError(
            "config.rl.train_on is seen, but config.sft.trajectories is 0, so the warm-up has seen "
            "no task; use config.rl.train_on=all."
        )
    if config.sft.dialogues and not config.sft.trajectories:
        raise UserError(
            "config.sft.dialogues is set, but config.sft.trajectories, the most of them that are "
            "used, is 0; raise it, or leave the file out."
        )
    if config.algo.name == "rlvmr" and tree.fork_at == "same_step":
        raise UserError(
            "config.algo.name=rlvmr does not fork and needs whole responses; use "
            "config.tree.fork_at=next_step."
        )
    if config.sft.min_learning_rate > config.sft.learning_rate:
        raise UserError(
            f"config.sft.min_learning_rate is {config.sft.min_learning_rate}; it has to be at most "
            f"config.sft.learning_rate, which is {config.sft.learning_rate}."
        )
    if config.rl.dual_clip and config.rl.dual_clip <= 1 + config.rl.clip:
        raise UserError(
            f"config.rl.dual_clip is {config.rl.dual_clip}; it has to be 0 (off) or more than "
            f"1 + config.rl.clip, which is {1 + config.rl.clip:g}."
        )
    if config.rl.minibatches > config.rl.tasks_per_iteration:
        raise UserError(
            f"config.rl.minibatches is {config.rl.minibatches}; minibatches hold whole trees, so "
            f"there can be no more than config.rl.tasks_per_iteration, which is "
            f"{config.rl.tasks_per_iteration}."
        )
    if config.rollout.response_tokens >= config.rollout.path_tokens:
        raise UserError(
            f"config.rollout.response_tokens is {config.rollout.response_tokens}; one response has "
            f"to fit into config.rollout.path_tokens, which is {config.rollout.path_tokens}."
        )
    # As in Engine.add, which would say so only when a path first gets as long.
    slots, pages = config.rollout.page_slots, config.rollout.pages
    needed = -(-config.rollout.path_tokens // slots) + 3
    if pages and pages < needed:
        raise UserError(
            f"config.rollout.pages is {pages}; a path of config.rollout.path_tokens needs {needed} "
            f"pages of {slots} tokens; raise it, or leave it at 0."
        )
    if config.rollout.backend in ("pallas", "pallas_interpret") and slots & (slots - 1):
        raise UserError(
            f"config.rollout.page_slots is {slots}, but config.rollout.backend="
            f"{config.rollout.backend} needs a power of two; use 16 or 32."
        )
    if config.train.row_tokens < config.rollout.path_tokens:
        raise UserError(
            f"config.train.row_tokens is {config.train.row_tokens}; a row has to hold a whole path "
            f"of config.rollout.path_tokens, which is {config.rollout.path_tokens}."
        )
    if config.train.row_targets > config.train.row_tokens:
        raise UserError(
            f"config.train.row_targets is {config.train.row_targets}; a row cannot have more "
            f"targets than config.train.row_tokens, which is {config.train.row_tokens}."
        )
    longest = config.rollout.response_tokens * (1 if config.env.history else config.env.max_steps)
    longest = min(longest, config.rollout.path_tokens)
    if config.rl.iterations and config.train.row_targets < longest:
        raise UserError(
            f"config.train.row_targets is {config.train.row_targets}; a row has to hold all the "
            f"response tokens that a path may have, which are {longest} (config.env.max_steps x "
            "config.rollout.response_tokens, at most config.rollout.path_tokens)."
        )
    if not config.env.tasks.strip():
        raise UserError(
            "config.env.tasks is empty; name task types, comma separated, or say default."
        )
    splits = config.eval.splits
    for split in splits:
        if split not in SPLITS:
            raise UserError(
                f"config.eval.splits names {split!r}{_nearest(split, SPLITS)}; choose from "
                f"{','.join(SPLITS)}."
            )
    if len(set(splits)) != len(splits):
        raise UserError(f"config.eval.splits names a split twice: {','.join(splits)}.")
    if "L2" in splits and config.env.protocol == "all_types":
        raise UserError(
            "config.eval.splits names L2, but config.env.protocol=all_types trains on every task "
            "type and leaves none unseen; say --config.eval.splits=L0,L1."
        )


def _check_prompted(config: ConfigDict) -> None:
    """`algo.name=react` trains nothing, so the model has to know something already."""
    for key in ("sft.trajectories", "rl.iterations"):
        if flatten(config)[key]:
            raise UserError(
                f"config.{key} is {flatten(config)[key]}, but config.algo.name=react only prompts "
                "and trains nothing; leave the key out, or choose another algo.name."
            )
    if config.model.preset in FROM_SCRATCH and not config.model.path:
        raise UserError(
            f"config.algo.name=react prompts a model as it is, but "
            f"config.model.preset={config.model.preset} has no weights of its own; choose smollm2, "
            "qwen1.5b or qwen7b (--config=configs/scienceworld.py:smollm2), or give a folder of "
            "weights in config.model.path."
        )


def _nearest(value: object, choices: Sequence[str]) -> str:
    match = difflib.get_close_matches(str(value), choices, 1, 0.6)
    return f" (did you mean {match[0]}?)" if match else ""
