"""Writes a trained policy as a Hugging Face folder, which transformers and this project can load.

python -m spark_jax.export runs/tiny exported/tiny
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from spark_jax.run.command_line import Parser, exit_code
from spark_jax.run.config import read_config
from spark_jax.types import UserError


def export(workdir: Path, folder: Path, checkpoint: str = "newest") -> int:
    """Weights, config and tokenizer of a run's checkpoint, and the tasks that it was trained on;
    returns the step it belongs to.

    Raises UserError for a folder that is no run's, a checkpoint that is not there, or a target that
    holds something already.
    """
    from spark_jax.models.presets import Model, save_model
    from spark_jax.run.checkpoint import check_checkpoint, saved_parameters
    from spark_jax.run.policy import load_policy
    from spark_jax.run.seen import write_record

    config = read_config(workdir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty; choose a new folder.")
    check_checkpoint(workdir, checkpoint)
    policy = load_policy(config, workdir, None)
    params, step = saved_parameters(workdir, policy.params, checkpoint)
    write_record(workdir, folder, checkpoint)  # first: weights without it say nothing
    save_model(Model(policy.config, params, policy.codec), folder)
    policy.codec.save_for_transformers(folder)
    return step


def main(argv: Sequence[str]) -> None:
    parser = Parser(prog="python -m spark_jax.export", description=__doc__.splitlines()[0])
    parser.add_argument("workdir", help="work folder of a run")
    parser.add_argument("folder", help="where to write; a new or empty folder")
    parser.add_argument("--checkpoint", default="newest", help="newest, a step, or reference")
    options = parser.parse_args(argv)
    step = export(Path(options.workdir), Path(options.folder), options.checkpoint)
    print(f"{options.folder}: the model of step {step}")


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
