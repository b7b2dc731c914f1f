"""The smallest whole run: settings that several tests share, so that their programs are compiled
once (tests/conftest.py keeps them on disk)."""

SETTINGS = [
    "env.tasks=doors-2x3",
    "sft.trajectories=12",
    "sft.epochs=3",
    "sft.panel=4",
    "sft.optimizer=muon",
    "sft.context_weight=0.5",
    "sft.rename=0.5",
    "sft.panel_every=1",
    "rl.iterations=3",
    "rl.tasks_per_iteration=2",
    "rl.learning_rate=1e-3",
    "tree.signal=random",
    "tree.signal_rate=0.5",
    "rollout.rows=4",
    "rollout.path_tokens=160",
    "train.row_tokens=256",
    "train.row_targets=144",
    "eval.splits=L1,L2",
    "eval.episodes=6",
    "checkpoint.every=1",
]
OVERRIDES = [f"--config.{setting}" for setting in SETTINGS]
