"""SPARK on ALFWorld.

    python -m spark_jax.main --config=configs/alfworld.py --workdir=runs/alfworld
    python -m spark_jax.main --config=configs/alfworld.py:qwen1.5b --workdir=runs/alfworld-qwen \\
      --config.env.data_dir=official

Without `env.data_dir` the games are the embedded ones: 4,800 train, 144 L0, 144 L1, in rooms of
our own.
Presets: those of configs/scienceworld.py (tiny, nano, smollm2, qwen1.5b, qwen7b).
"""

import pathlib

from ml_collections import ConfigDict

from spark_jax.run.config import read_config_file

_HERE = pathlib.Path(__file__).parent


def get_config(preset: str = "tiny") -> ConfigDict:
    """ScienceWorld's preset with what is different in a household."""
    config = read_config_file(f"{_HERE / 'scienceworld.py'}:{preset}")
    config.env.name = "alfworld"
    config.env.tasks = "default"  # all
    config.env.protocol = "all_types"
    config.env.max_steps = 30  # the paper's
    config.eval.splits = ("L0", "L1")
    if preset in ("tiny", "nano"):
        config.env.max_steps = 20  # nearly all embedded games are won by the expert in 18
        if preset == "tiny":
            # 300 dialogues read 20 times are learned by heart: on them it knows whether a thing
            # is here in nine of ten cases, on other games by chance (docs/log.md).
            config.sft.trajectories = 3000
        config.sft.epochs = 2
        config.sft.panel_every = 1
        config.rl.iterations = 12
        config.rl.temperature = 1.0
        config.rl.rename = 0.0
        # Who reaches for a thing that is not there loses one step and goes on. With a penalty on
        # it the policy stops reaching, and success falls (docs/log.md).
        config.algo.invalid_penalty = 0.0
        # The expert's paths have 490 tokens, with slips 590, one in sixty of these more than 1,280;
        # its responses at most 40, a few after a slip up to 59.
        config.rollout.response_tokens = 56
        config.rollout.path_tokens = 1280
        config.train.row_tokens = 1280
        config.train.row_targets = 1120  # 20 responses of a path
    return config
