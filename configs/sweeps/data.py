"""Share of the 300 warm-up dialogues: 20, 40, 60, 80 and 100 % (the paper varies training data)."""

GRID = {"sft.trajectories": [60, 120, 180, 240, 300]}
