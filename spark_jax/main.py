"""Warm-up, RL and evaluation from one command.

python -m spark_jax.main --config=configs/scienceworld.py --workdir=runs/tiny

A second call with the same --workdir resumes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from spark_jax.run.alone import alone
from spark_jax.run.command_line import Parser, exit_code, parse


def main(argv: Sequence[str]) -> None:
    parser = Parser(prog="python -m spark_jax.main", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--workdir", default="", help="work folder; the default is runs/NAME-PRESET-ALGO-seedS"
    )
    options, config = parse(parser, argv, default_config="configs/scienceworld.py")
    # After the config is known to be good: JAX takes a second.
    if config.algo.name == "react":
        from spark_jax.run.react import run
    else:
        from spark_jax.run.loop import run

    name = f"{config.env.name}-{config.model.preset}-{config.algo.name}-seed{config.seed}"
    workdir = Path(options.workdir or f"runs/{name}")
    with alone(workdir):
        run(config, workdir)


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
