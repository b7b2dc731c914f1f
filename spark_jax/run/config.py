"""How the settings of a run are read, overridden and kept.

A config file holds `get_config(preset) -> ConfigDict`, starts from `base_config()` of
run/defaults.py and overrides. The command line overrides both: `--config=FILE[:PRESET]
--config.tree.leaves=16`.
No JAX here.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from spark_jax.run.defaults import base_config, flatten
from spark_jax.run.files import write_text
from spark_jax.run.rules import SEPARATE_EPISODES, check_config
from spark_jax.types import UserError

_KIND_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list of names",
}

# A resumed run may change these: they do not change what the next iteration computes.
LENGTHS = ("rl.iterations", "rl.sampled_tokens")
MAY_CHANGE_ON_RESUME = (*LENGTHS, "eval.", "checkpoint.", "env.workers", "mesh.")


def load_config(source: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a config file, applies overrides, and checks the result.

    Args:
      source: `FILE` or `FILE:PRESET`; the preset is handed to the file's `get_config`.
      overrides: `KEY=VALUE` each, the key with dots and without the leading `--config.`.

    Returns:
      A checked config with locked keys, every key of `base_config()` set. For algorithms that
      sample separate episodes `tree.signal` is "never" and `tree.roots` is `tree.leaves`; for
      react nothing is trained (`sft.trajectories` and `rl.iterations` are 0, prompts are full).

    Raises:
      UserError: a file, preset, key, type or value is wrong.
    """
    config = read_config_file(source)
    _check_keys(flatten(config), source)
    config = _with_types_of_base(config)
    overridden = _apply_overrides(config, overrides)
    _settle_algorithm(config, overridden)
    check_config(config)
    return config.lock()


def changed_keys(config: ConfigDict) -> dict[str, Any]:
    """The keys whose values differ from `base_config()`, flat."""
    base = flatten(base_config())
    return {k: v for k, v in flatten(config).items() if k not in base or base[k] != v}


def start_or_resume(workdir: pathlib.Path | str, config: ConfigDict) -> bool:
    """Writes `config.json`, or checks that the run in `workdir` has the same config. Where nothing
    has been learned or evaluated yet, for example because a path was wrong, the run there starts
    anew with this config instead.

    Returns:
      True if the folder already holds a run, which then goes on.

    Raises:
      UserError: the run there was started with another value of a key that must not change
        (all but MAY_CHANGE_ON_RESUME; and LENGTHS where the learning rate falls, since then all
        iterations depend on them), or the folder cannot be written.
    """
    path = pathlib.Path(workdir) / "config.json"
    resumes = path.exists()
    if resumes and (change := _change(read_config(workdir), config)):
        if _has_results(path.parent):
            raise UserError(
                f"the run in {workdir} was started with {change}; use the old value to resume it "
                "or another --workdir to start anew."
            )
        _forget(path.parent)
        resumes = False
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    if not resumes or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return resumes


def _change(old: ConfigDict, new: ConfigDict) -> str:
    """In words, the first key of a run's config that differs and must not; "" if none does."""
    before, after = flatten(old), flatten(new)
    for key in [*after, *(k for k in before if k not in after)]:
        if before.get(key) == after.get(key):
            continue
        falls = key in LENGTHS and new.rl.decay_to < 1
        if key.startswith(MAY_CHANGE_ON_RESUME) and not falls:
            continue
        if key in before and key in after:
            return f"config.{key} = {before[key]!r}, not {after[key]!r}"
        return f"{'the' if key in before else 'no'} key config.{key}"
    return ""


def _has_results(workdir: pathlib.Path) -> bool:
    """Whether a run has saved a checkpoint or episodes of an evaluation."""
    saved = (p.name for p in (workdir / "checkpoints").glob("*"))
    return (
        any(name.isdigit() or name == "reference" for name in saved)
        or (workdir / "eval.json").exists()
        or (workdir / "evaluations").exists()
    )


def _forget(workdir: pathlib.Path) -> None:
    """Removes what a run makes before it learns."""
    (workdir / "warmup.jsonl").unlink(missing_ok=True)
    shutil.rmtree(workdir / "tokenizer", ignore_errors=True)


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


def read_config_file(source: str) -> ConfigDict:
    """What `get_config` of `FILE` or `FILE:PRESET` returns, unchecked: for `load_config`, and for
    config files that start from another one. Raises UserError for a file that fails."""
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
            "best made by spark_jax.run.defaults.base_config()."
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
    """Separate episodes are the tree that never forks (GRPO is signal=never, M = N).

    Prompting (react) has no warm-up, no RL, and says the rules in its prompts.
    What the user said on the command line is kept and judged by `check_config`.
    """
    if config.algo.name == "react":
        for key, value in (("sft.trajectories", 0), ("rl.iterations", 0), ("env.prompt", "full")):
            if key not in overridden:
                _set(config, key, value)
    if config.algo.name not in SEPARATE_EPISODES:
        return
    if "tree.signal" not in overridden:
        config.tree.signal = "never"
    if "tree.roots" not in overridden:
        config.tree.roots = config.tree.leaves
    if config.algo.name in ("gigpo", "rlvmr") and "algo.advantage" not in overridden:
        config.algo.advantage = config.algo.name
    if config.algo.name == "eto":  # failures are paired with expert paths of the same task
        for key, value in (
            ("rl.train_on", "seen"),
            ("rl.rename", 0.0),
            ("algo.invalid_penalty", 0.0),
        ):
            if key not in overridden:
                _set(config, key, value)
