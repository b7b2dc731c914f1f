"""What makes a step a fork: the model's tag, chance, every step, none (the paper's ablation),
and beyond it entropy and the calibrated mix.

`random` forks about as often as the tag of the tiny preset asks for (27 % of the steps). `never`
plays N separate episodes, so that every setting has the same number of leaves.
"""

GRID = [
    {"tree.signal": "explore"},
    {"tree.signal": "entropy"},
    {"tree.signal": "calibrated"},
    {"tree.signal": "random", "tree.signal_rate": 0.27},
    {"tree.signal": "always"},
    {"tree.signal": "never", "tree.roots": 8},
]
