"""SPARK on WebShop.

    python -m spark_jax.main --config=configs/webshop.py --workdir=runs/webshop
    python -m spark_jax.main --config=configs/webshop.py:qwen1.5b --workdir=runs/webshop-qwen \\
      --config.env.data_dir=/data/webshop

Without `env.data_dir` the shop is the embedded one: 300 generated products, 1,251 goals.
Presets: those of configs/scienceworld.py (tiny, nano, smollm2, qwen1.5b, qwen7b).
"""

import pathlib

from ml_collections import ConfigDict

from spark_jax.run.config import read_config_file

_HERE = pathlib.Path(__file__).parent


def get_config(preset: str = "tiny") -> ConfigDict:
    """ScienceWorld's preset with what is different in the shop."""
    config = read_config_file(f"{_HERE / 'scienceworld.py'}:{preset}")
    config.env.name = "webshop"
    config.env.tasks = "default"  # goals made from the products
    config.env.protocol = "all_types"
    config.env.max_steps = 15  # the paper's
    config.eval.splits = ("L0", "L1")
    if preset in ("tiny", "nano"):
        if preset == "tiny":
            # More goals and fewer epochs than of 300 dialogues read 12 times, which are learned by
            # heart (docs/log.md); a third of the goals is new to RL.
            config.sft.trajectories = 600
        config.sft.epochs = 9  # pages are long: an epoch takes a minute on two cores
        # The shop's names and numbers, that nobody can guess, drowned what is to be learned: 42 ->
        # 60 % of L0 (docs/log.md).
        config.sft.context_weight = 0.1
        config.sft.slips = 0.3  # three in five missing options are tried first
        config.sft.batch_paths = 4  # more steps for the same time: 5 points of L0 (docs/log.md)
        config.sft.learning_rate = 4e-3
        config.sft.panel_every = 3
        # Most leaves buy something that is right in part: groups differ in score more often than
        # in success. At a temperature of 0.8 names are misspelt and sentences turn to babble.
        config.rl.reward = "score"
        config.rl.temperature = 0.5
        config.rl.learning_rate = 2e-4
        config.rl.rename = 0.0
        config.rl.iterations = 9  # with more the default run passes 15 minutes on a slow day
        config.rollout.response_tokens = 80  # the shopper's at most 65
        config.rollout.path_tokens = 2048
        config.train.row_tokens = 2048
        config.train.row_targets = 1200  # 15 responses of a path
    return config
