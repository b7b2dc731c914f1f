"""What the commands of the project share: reading `--config` with its overrides, and ending on a
user's mistake with one sentence and exit code 2."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from ml_collections import ConfigDict

from spark_jax.run.config import load_config
from spark_jax.types import UserError


class Parser(argparse.ArgumentParser):
    """argparse, except that a mistake raises UserError and options are never abbreviated."""

    def __init__(self, **options: object):
        self.option_names: list[str] = []
        super().__init__(allow_abbrev=False, **options)  # type: ignore[arg-type]

    def add_argument(self, *names: str, **options: object) -> argparse.Action:  # type: ignore
        self.option_names += [name for name in names if name.startswith("-")]
        return super().add_argument(*names, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help.")


def parse(
    parser: Parser, argv: Sequence[str], default_config: str | None = None
) -> tuple[argparse.Namespace, ConfigDict | None]:
    """Parses a command line that may hold `--config=FILE[:PRESET]` and `--config.KEY=VALUE`.

    Args:
      parser: the command's own options; `--config` is added here.
      argv: without the program's name.
      default_config: what `--config` is when it is not given; None: no config is read then.

    Returns:
      The options, and the checked config (None when there is no `--config`).

    Raises:
      UserError: an option or a key is unknown, or a value is wrong.
    """
    parser.add_argument(
        "--config",
        default=default_config,
        metavar="FILE[:PRESET]",
        help="Python file with get_config(preset), for example configs/scienceworld.py:smollm2; "
        "any key can be overridden: --config.tree.leaves=16",
    )
    rest, overrides = take_overrides(argv)
    options, unknown = parser.parse_known_args(rest)
    if unknown:
        name = unknown[0].split("=")[0]
        match = difflib.get_close_matches(name, parser.option_names, 1, 0.0)
        raise UserError(f"unknown argument {unknown[0]}; the nearest option is {match[0]}.")
    if options.config is None:
        if overrides:
            raise UserError(
                f"--config.{overrides[0]} overrides nothing without a config file; add "
                "--config=configs/scienceworld.py."
            )
        return options, None
    return options, load_config(options.config, overrides)


def exit_code(command: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Runs a command; a UserError is printed as one line on standard error and becomes 2.

    Ctrl-C becomes 130, without a traceback.
    """
    try:
        return command(argv) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def take_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits argv into other arguments and `KEY=VALUE` of `--config.KEY=VALUE` (or two words)."""
    rest: list[str] = []
    overrides: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--config."):
            rest.append(word)
        elif "=" in word:
            overrides.append(word.removeprefix("--config."))
        else:
            key = word.removeprefix("--config.")
            has_value = bool(words) and not words[0].startswith("--")
            overrides.append(f"{key}={words.pop(0)}" if has_value else key)
    return rest, overrides


def read_seeds(text: str) -> list[int]:
    """The seeds of --seeds=0,1,2. Raises UserError for anything else, or for one named twice."""
    texts = text.split(",")
    if not all(seed.isdecimal() for seed in texts) or len({*map(int, texts)}) < len(texts):
        raise UserError(f"--seeds is {text!r}; it has to be numbers such as 0,1,2.")
    return [int(seed) for seed in texts]
