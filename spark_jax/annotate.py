"""A model behind an endpoint writes the thoughts of the warm-up's expert paths.

python -m spark_jax.annotate --config=configs/scienceworld.py:smollm2 --paths=300 \\
  --endpoint=https://api.openai.com/v1 --model=gpt-4o --out=dialogues.jsonl
python -m spark_jax.main --config=configs/scienceworld.py:smollm2 \\
  --config.sft.dialogues=dialogues.jsonl

The actions stay the expert's. Stopped, it goes on with the same command (docs/endpoints.md).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from spark_jax.run.command_line import Parser, exit_code, parse
from spark_jax.run.endpoint_options import (
    add_endpoint_options,
    connected,
    describe_cost,
    prices_of,
)
from spark_jax.types import UserError


def main(argv: Sequence[str]) -> None:
    parser = Parser(prog="python -m spark_jax.annotate", description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="", help="file of the dialogues, for sft.dialogues")
    parser.add_argument("--paths", type=int, default=0, help="0: as many as sft.trajectories")
    parser.add_argument("--temperature", type=float, default=0.4)
    parser.add_argument(
        "--answers", type=int, default=3, help="bad ones after which a step keeps our own thought"
    )
    add_endpoint_options(parser)
    options, config = parse(parser, argv, default_config="configs/scienceworld.py")
    if not options.out:
        raise UserError("name the file to write: --out=dialogues.jsonl.")
    if Path(options.out).is_dir():
        raise UserError(f"--out={options.out} is a folder; name a file, such as dialogues.jsonl.")
    count = options.paths or config.sft.trajectories
    if count < 1 or options.answers < 1:
        raise UserError("--paths (or config.sft.trajectories) and --answers have to be 1 or more.")
    stop, prices, out = threading.Event(), prices_of(options), Path(options.out)
    complete, about = connected(options, options.temperature, stop)
    from spark_jax.run.teacher import annotate_paths  # JAX from here on

    told = annotate_paths(
        config, out, count, complete, about, prices, options.concurrency, options.answers, stop
    )
    print(
        f"{out}: {told['paths']} paths, {told['steps']} steps, {told['explores']} of them explore; "
        f"{told['fallbacks']} kept our own thought ({told['requests']} requests)\n"
        f"{describe_cost(told, prices)}"
    )


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
