"""Token use (the paper's figure): the same iterations and leaves, forks or separate episodes. The
table's sampled tokens are the answer; the plot shows what they bought."""

GRID = {"algo.name": ["spark", "grpo"]}
