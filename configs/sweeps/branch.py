"""B, the children of a spark point (the paper's ablation)."""

GRID = {"tree.branch": [1, 2, 3, 4]}
