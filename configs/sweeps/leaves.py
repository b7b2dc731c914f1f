"""N, the leaf budget (the paper's ablation). M stays at 4, so the smallest tree has 4 leaves."""

GRID = {"tree.leaves": [4, 8, 12, 16]}
