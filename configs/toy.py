"""SPARK on the toy chain of rooms: the whole machinery, optimum known.

    python -m spark_jax.main --config=configs/toy.py:learn --workdir=runs/toy

Presets:
  nano   what the tests run: the smallest model, within a minute, learns nothing.
  learn  the tiny model learns by RL alone which of four doors is right in each room, two of them
         in a row: success on train tasks 0.3 -> 0.95, about seven minutes on one core of
         a busy machine.
"""

from ml_collections import ConfigDict

from spark_jax.run.defaults import base_config
from spark_jax.types import UserError


def get_config(preset: str = "nano") -> ConfigDict:
    """The default settings, with short episodes."""
    config = base_config()
    if preset not in ("nano", "learn"):
        raise UserError(f"configs/toy.py has no preset {preset!r}; choose nano or learn.")
    config.model.preset = "nano"
    config.env.name = "toy"
    config.env.tasks = "doors-3x4"
    config.env.max_steps = 6
    config.env.workers = 4
    config.sft.trajectories = 32
    config.sft.epochs = 4
    config.sft.panel = 16
    config.rl.iterations = 4
    config.rl.tasks_per_iteration = 4
    config.rollout.response_tokens = 24
    config.rollout.path_tokens = 256
    config.rollout.chunk = 8
    config.train.row_tokens = 512
    config.train.row_targets = 256
    config.eval.episodes = 32
    if preset == "learn":
        config.model.preset = "tiny"
        config.env.tasks = "doors-2x4"
        config.sft.trajectories = 64
        config.sft.epochs = 10  # the format is known after a few, the doors are not
        config.sft.batch_paths = 8
        config.rl.iterations = 60
        config.rl.tasks_per_iteration = 16
        config.rl.learning_rate = 1e-3
        config.rl.warmup_steps = 8
        config.rl.kl_coef = 0.1  # without KL the policy is lost (docs/log.md)
        config.rollout.rows = 32
        config.eval.episodes = 64
        config.eval.splits = ("L0",)
    return config
