"""The settings of a run: their defaults, how they are read, and what is wrong with them.

A config file holds `get_config(preset) -> ConfigDict`, starts from `base_config()` and overrides.
The command line overrides both: `--config=FILE[:PRESET] --config.tree.leaves=16`.
Config stops at the training loop; nothing below it sees a ConfigDict. No JAX here.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from spark_jax.run.files import write_text
from spark_jax.types import UserError


def base_config() -> ConfigDict:
    """Every key with its default, which is the `tiny` size (DESIGN 6, "Config presets")."""
    config = ConfigDict()
    config.seed = 0  # of everything: parameters, tasks, sampling

    config.env = ConfigDict()
    config.env.name = "scienceworld"  # environment: scienceworld, or toy (instant, for tests)
    config.env.tasks = "default"  # task types, comma separated; "default": all the protocol has
    config.env.max_steps = 16  # turns of the environment before a path is cut (step_limit)
    config.env.workers = 0  # live environments; 0: as many as cores and memory allow
    config.env.protocol = "held_out"  # held_out (has L2) or all_types (trains on every type)
    config.env.success = "strict"  # ScienceWorld: strict (score 100) or loose (done, score > 0)
    config.env.simplification = "easy"  # ScienceWorld's own simplification string
    config.env.prompt = "short"  # short (model trained from scratch) or full (rules, templates)

    config.model = ConfigDict()
    config.model.preset = "tiny"  # tiny, nano (tests), smollm2, qwen1.5b, qwen7b
    config.model.path = ""  # folder, GGUF file or hub name of the weights; "": the preset's own
    config.model.param_dtype = "float32"  # of stored parameters: float32 or bfloat16
    config.model.dtype = "float32"  # of the computation: float32 or bfloat16

    config.tree = ConfigDict()
    config.tree.leaves = 8  # N: leaves of a tree at most
    config.tree.roots = 4  # M: first steps sampled independently, M <= N
    config.tree.branch = 2  # B: children of a spark point, as the budget allows
    config.tree.signal = "explore"  # what makes a spark point: explore, random, always, never
    config.tree.signal_rate = 0.2  # signal=random: chance that a step is a spark point
    config.tree.fork_at = "next_step"  # next_step (the paper's Eq. 6) or same_step

    config.algo = ConfigDict()
    config.algo.name = "spark"  # spark, or grpo: separate episodes (signal never, roots = leaves)
    config.algo.advantage = "leaf_group"  # see CHOICES; formulas in learn/advantage.py
    config.algo.leaf_weight = "uniform"  # uniform (the paper) or path (product of 1/b_eff)
    config.algo.token_mean = "step"  # step: over all tokens of the optimiser step; leaf: per leaf
    config.algo.invalid_penalty = 0.0  # subtracted from the advantage of an invalid step's tokens

    config.sft = ConfigDict()
    config.sft.trajectories = 300  # expert paths of the warm-up; 0: no warm-up
    config.sft.epochs = 16  # passes over them at most (see patience)
    config.sft.batch_paths = 16  # paths of an optimiser step
    config.sft.learning_rate = 3e-3  # peak, decays by a cosine to min_learning_rate
    config.sft.min_learning_rate = 1e-4  # at the end; equal to learning_rate: constant
    config.sft.panel = 32  # episodes of the L0 panel that the warm-up is watched by; 0: none
    config.sft.panel_every = 2  # epochs between panels
    config.sft.patience = 0  # panels without a better one before stopping; 0: never stop early
    config.sft.weight_decay = 0.1  # AdamW
    config.sft.from_run = ""  # work folder of a run whose warm-up this one starts from; "": its own
    config.sft.extra_seconds = 0.0  # algo.name=sft: the warm-up goes on for so long instead of RL

    config.rl = ConfigDict()
    config.rl.iterations = 24  # rollout and update, this many times; 0: no RL
    config.rl.tasks_per_iteration = 8  # trees of an iteration
    config.rl.learning_rate = 1e-4  # AdamW, constant
    config.rl.kl_coef = 0.01  # of KL(policy || reference), k3 estimator
    config.rl.clip = 0.2  # epsilon of the clipped ratio
    config.rl.dual_clip = 3.0  # bound of the ratio for negative advantages; 0: off
    config.rl.entropy_coef = 0.001  # of the entropy bonus; 0: off
    config.rl.weight_decay = 0.01  # AdamW
    config.rl.grad_clip = 1.0  # global norm of the gradient at most; used by the warm-up too
    config.rl.temperature = 1.0  # of sampling and of every log-prob in training
    config.rl.minibatches = 2  # optimiser steps an iteration is split into, over whole trees
    config.rl.recompute_old = False  # old log-probs: the sampler's, or (True) the training graph's

    config.train = ConfigDict()
    config.train.row_tokens = 1536  # tokens of a packed row; a longer tree is cut into several rows
    config.train.row_targets = 768  # tokens of a row that carry loss
    config.train.rows = 1  # rows of a micro-batch (on each device of the data and fsdp axes)
    config.train.remat = False  # recompute layers in the backward pass: less memory, more time

    config.rollout = ConfigDict()
    config.rollout.rows = 8  # paths decoded at the same time
    config.rollout.page_slots = 16  # tokens of a page of the key/value cache
    config.rollout.pages = 0  # pages of the pool; 0: enough for `rows` paths of full length
    config.rollout.chunk = 8  # tokens decoded on the device between two looks of the host
    config.rollout.response_tokens = 48  # sampled in one step at most
    config.rollout.path_tokens = 1536  # of a whole path with its prompt at most (token_limit)
    config.rollout.deterministic = True  # schedule does not depend on environment time

    config.eval = ConfigDict()
    config.eval.temperature = 0.4  # of sampling in evaluations; 0: greedy
    config.eval.splits = ("L0", "L1", "L2")  # L2 only with the held_out protocol
    config.eval.episodes = 64  # of a split, a fixed panel; 0: the whole split
    config.eval.every = 0  # RL iterations between evaluations; 0: before and after only

    config.mesh = ConfigDict()
    config.mesh.data = 0  # devices along the batch; 0: all that fsdp and tensor leave
    config.mesh.fsdp = 1  # devices that parameters and optimiser state are split over
    config.mesh.tensor = 1  # devices that one layer is split over

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 4  # RL iterations between checkpoints
    config.checkpoint.keep = 2  # newest checkpoints that stay
    return config


CHOICES: dict[str, tuple[str, ...]] = {
    "env.protocol": ("held_out", "all_types"),
    "env.success": ("strict", "loose"),
    "env.prompt": ("short", "full"),
    "model.preset": ("tiny", "nano", "smollm2", "qwen1.5b", "qwen7b"),
    "model.param_dtype": ("float32", "bfloat16"),
    "model.dtype": ("float32", "bfloat16"),
    "tree.signal": ("explore", "random", "always", "never"),
    "tree.fork_at": ("next_step", "same_step"),
    "algo.name": ("spark", "grpo", "sft"),
    "algo.advantage": ("leaf_group", "step_rows", "no_std", "sibling", "mix"),
    "algo.leaf_weight": ("uniform", "path"),
    "algo.token_mean": ("step", "leaf"),
}
SPLITS = ("L0", "L1", "L2")

# Algorithms that sample separate episodes: a tree that never forks, with as many roots as leaves.
SEPARATE_EPISODES = ("grpo",)

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
    "seed env.workers sft.panel sft.trajectories sft.epochs sft.patience sft.weight_decay "
    "rl.iterations rl.kl_coef rl.dual_clip rl.entropy_coef rl.weight_decay algo.invalid_penalty "
    "rollout.pages sft.extra_seconds eval.temperature eval.episodes eval.every mesh.data "
    "sft.min_learning_rate"
).split():
    _RULES[_key] = (lambda value: value >= 0, "0 or more")
for _key in "sft.learning_rate rl.learning_rate rl.grad_clip rl.temperature".split():
    _RULES[_key] = (lambda value: value > 0, "more than 0")
_RULES["rl.clip"] = (lambda value: 0 < value < 1, "between 0 and 1")
_RULES["tree.signal_rate"] = (lambda value: 0 <= value <= 1, "between 0 and 1")

_KIND_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list of names",
}

# A resumed run may change these: they do not change what the next iteration computes.
MAY_CHANGE_ON_RESUME = ("rl.iterations", "eval.", "checkpoint.", "env.workers", "mesh.")


def load_config(source: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a config file, applies overrides, and checks the result.

    Args:
      source: `FILE` or `FILE:PRESET`; the preset is handed to the file's `get_config`.
      overrides: `KEY=VALUE` each, the key with dots and without the leading `--config.`.

    Returns:
      A checked config with locked keys, every key of `base_config()` set. For algorithms that
      sample separate episodes `tree.signal` is "never" and `tree.roots` is `tree.leaves`.

    Raises:
      UserError: a file, preset, key, type or value is wrong.
    """
    config = _read_file(source)
    _check_keys(flatten(config), source)
    config = _with_types_of_base(config)
    overridden = _apply_overrides(config, overrides)
    _settle_algorithm(config, overridden)
    check_config(config)
    return config.lock()


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
            raise UserError(f"config.{key} is {value}; it has to be {_RULES[key][1]}.")

    tree = config.tree
    if tree.roots > tree.leaves:
        raise UserError(
            f"config.tree.roots is {tree.roots} but config.tree.leaves is {tree.leaves}; a tree "
            "cannot have more roots than leaves."
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


def flatten(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """`{"tree.leaves": 8, ...}`, sorted (as ConfigDict sorts its keys). Lists become tuples."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            out.update({f"{key}.{inner}": v for inner, v in flatten(value).items()})
        else:
            out[key] = tuple(value) if isinstance(value, list) else value
    return out


def changed_keys(config: ConfigDict) -> dict[str, Any]:
    """The keys whose values differ from `base_config()`, flat."""
    base = flatten(base_config())
    return {k: v for k, v in flatten(config).items() if k not in base or base[k] != v}


def start_or_resume(workdir: pathlib.Path | str, config: ConfigDict) -> bool:
    """Writes `config.json`, or checks that the run in `workdir` has the same config.

    Returns:
      True if the folder already holds a run, which then goes on.

    Raises:
      UserError: the run there was started with another value of a key that must not change
        (all but MAY_CHANGE_ON_RESUME), or the folder cannot be written.
    """
    path = pathlib.Path(workdir) / "config.json"
    new = flatten(config)
    resumes = path.exists()
    if resumes:
        old = flatten(read_config(workdir))
        for key in [*new, *(k for k in old if k not in new)]:
            if old.get(key) == new.get(key) or key.startswith(MAY_CHANGE_ON_RESUME):
                continue
            if key in old and key in new:
                what = f"config.{key} = {old[key]!r}, not {new[key]!r}"
            else:
                what = f"{'the' if key in old else 'no'} key config.{key}"
            raise UserError(
                f"the run in {workdir} was started with {what}; use the old value to resume it or "
                "another --workdir to start anew."
            )
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    if not resumes or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return resumes


def read_config(workdir: pathlib.Path | str) -> ConfigDict:
    """The config of the run in `workdir`, locked.

    Raises:
      UserError: there is no `config.json`, or it is damaged.
    """
    path = pathlib.Path(workdir) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        splits = values["eval"]["splits"]
    except FileNotFoundError:
        raise UserError(
            f"{workdir} has no config.json, so it is not the work folder of a run; give the folder "
            "that was the --workdir of spark_jax.main."
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); restore it or use another --workdir."
        ) from None
    values["eval"]["splits"] = tuple(splits)  # JSON has no tuples
    return ConfigDict(values).lock()


def unknown_key_message(key: str, known: Sequence[str]) -> str:
    """One sentence for a key that does not exist, with the nearest one that does."""
    nearest = difflib.get_close_matches(key, known, 1, 0.0)
    # A key whose last word is right and whose section is wrong beats a merely similar spelling.
    last = key.rsplit(".", 1)[-1]
    same_name = [k for k in known if k.rsplit(".", 1)[-1] == last]
    best = difflib.get_close_matches(key, same_name, 1, 0.0) or nearest
    return f"there is no key config.{key}; the nearest one is config.{best[0]}."


def _read_file(source: str) -> ConfigDict:
    name, _, preset = source.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        raise UserError(
            f"there is no config file {name}; give one that exists, for example "
            "--config=configs/scienceworld.py."
        )
    spec = importlib.util.spec_from_file_location(f"spark_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"the config file {name} is not a Python file; its name has to end in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(preset) if preset else module.get_config()
    except UserError:
        raise
    except Exception as error:  # any mistake in a user's file ends in one sentence
        unknown = getattr(error, "name", None)
        if isinstance(error, AttributeError) and isinstance(unknown, str):
            detail = f"{unknown} does not exist"
        else:
            detail = " ".join(str(error).split())
        raise UserError(
            f"the config file {name} fails with {type(error).__name__} "
            f"({detail}){_line_of(error, path)}; it has to define get_config(preset)."
        ) from None
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config of {name} returns {type(config).__name__}; it has to return a ConfigDict, "
            "best made by spark_jax.run.config.base_config()."
        )
    return config


def _line_of(error: BaseException, path: pathlib.Path) -> str:
    """ " at line 12" when the error's traceback (or syntax error) points into `path`."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f" at line {error.lineno}"
    line, trace = None, error.__traceback__
    while trace is not None:
        if pathlib.Path(trace.tb_frame.f_code.co_filename) == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" at line {line}" if line else ""


def _check_keys(flat: Mapping[str, Any], where: str) -> None:
    known = list(flatten(base_config()))
    for key in flat:
        if key not in known:
            raise UserError(f"in {where} {unknown_key_message(key, known)}")
    for key in known:
        if key not in flat:
            raise UserError(f"{where} lacks config.{key}; start from base_config(), which has it.")


def _with_types_of_base(config: ConfigDict) -> ConfigDict:
    """The same values in a fresh ConfigDict that has the types of `base_config()`."""
    out = base_config()
    for key, value in flatten(config).items():
        _set(out, key, value)
    return out


def _set(config: ConfigDict, key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    target = config[section] if section else config
    wanted = type(target[name])
    if wanted is float and type(value) is int:
        value = float(value)
    if wanted is not type(value):
        raise UserError(
            f"config.{key} is {value!r}; it has to be {_KIND_WORDS[wanted]} "
            f"such as {target[name]!r}."
        )
    target[name] = value


def _apply_overrides(config: ConfigDict, overrides: Sequence[str]) -> set[str]:
    """Changes `config` in place through ml_collections' flags; returns the keys that were named."""
    known = flatten(config)
    argv = [sys.argv[0] if sys.argv else ""]
    named = set()
    for item in overrides:
        key, equals, text = item.partition("=")
        if key not in known:
            if any(k.startswith(key + ".") for k in known):
                inside = ", ".join(k for k in known if k.startswith(key + "."))
                raise UserError(f"config.{key} is a group of keys; name one of them: {inside}.")
            raise UserError(unknown_key_message(key, list(known)))
        if not equals:
            raise UserError(f"config.{key} has no value; write --config.{key}=VALUE.")
        if isinstance(known[key], tuple):
            text = repr(_parse_names(text))
        if isinstance(known[key], int) and not isinstance(known[key], bool):
            text = _whole_number(text)
        argv.append(f"--config.{key}={text}")
        named.add(key)
    if not named:
        return named
    values = flags.FlagValues()  # a private set: nothing global is touched, so calls can repeat
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, lock_config=False, sys_argv=argv
        )
        values(argv)
    except (flags.Error, TypeError, ValueError):
        # absl's message names its own classes; say the same in the user's words.
        for item in overrides:
            key, _, text = item.partition("=")
            if not _parses_as(type(known[key]), text):
                raise UserError(
                    f"config.{key} is {text!r}; it has to be {_KIND_WORDS[type(known[key])]} "
                    f"such as {known[key]!r}."
                ) from None
        raise
    return named


def _parse_names(text: str) -> tuple[str, ...]:
    """`L0,L1`, `L0`, `("L0", "L1")`, `['L0']` and the empty text are all lists of names."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(value, tuple | list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _whole_number(text: str) -> str:
    """`1e3` and `16.0` are whole numbers too; anything else stays as it is."""
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else text


def _parses_as(kind: type, text: str) -> bool:
    if kind is bool:
        return text.lower() in ("true", "t", "1", "false", "f", "0")
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _settle_algorithm(config: ConfigDict, overridden: set[str]) -> None:
    """Separate episodes are the tree that never forks (FACTS: GRPO is signal=never, M = N).

    What the user said on the command line is kept and judged by `check_config`.
    """
    if config.algo.name not in SEPARATE_EPISODES:
        return
    if "tree.signal" not in overridden:
        config.tree.signal = "never"
    if "tree.roots" not in overridden:
        config.tree.roots = config.tree.leaves


def _nearest(value: object, choices: Sequence[str]) -> str:
    match = difflib.get_close_matches(str(value), choices, 1, 0.6)
    return f" (did you mean {match[0]}?)" if match else ""
