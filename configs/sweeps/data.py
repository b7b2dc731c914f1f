"""Share of the training data (the paper's figure, SPARK beside GRPO): 20, 40, 60, 80 and 100 % of
the 300 warm-up dialogues, and RL on the tasks of those dialogues alone."""

GRID = {
    "algo.name": ["spark", "grpo"],
    "sft.trajectories": [60, 120, 180, 240, 300],
    "rl.train_on": ["seen"],
}
