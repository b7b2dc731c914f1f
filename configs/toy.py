"""SPARK on the toy chain of rooms: the whole machinery in a minute, optimum known.

    python -m spark_jax.main --config=configs/toy.py --workdir=runs/toy

Used by the tests, and to see that branching at critical steps pays (docs/log.md).
"""

from ml_collections import ConfigDict

from spark_jax.run.defaults import base_config


def get_config(preset: str = "nano") -> ConfigDict:
    """The default settings, with short episodes."""
    config = base_config()
    config.model.preset = preset
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
    return config
