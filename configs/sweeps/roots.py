"""M, the number of first steps sampled independently (the paper's ablation)."""

GRID = {"tree.roots": [1, 2, 4, 6, 8]}
