"""What makes a step a fork (the paper's ablation): the model's tag, chance, every step, none."""

GRID = {"tree.signal": ["explore", "entropy", "calibrated", "random", "always", "never"]}
