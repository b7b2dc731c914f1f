"""Where the dialogues of a run's warm-up come from."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from spark_jax.envs.pool import default_workers, usable_cores
from spark_jax.keep import cache_folder
from spark_jax.run import borrow, warmup
from spark_jax.run.progress import Progress
from spark_jax.run.worlds import World


def warm_up_examples(config: ConfigDict, workdir: Path, world: World) -> list[warmup.Example]:
    """The warm-up dialogues, made once per work folder: paths of our own experts, those of another
    run, or those of a file."""
    path = workdir / "warmup.jsonl"
    if path.is_file():
        return warmup.load_examples(path)
    if config.sft.from_run:
        borrow.check_format(config)
        return borrow.dialogues(config.sft.from_run, workdir, world)
    if not config.sft.trajectories:
        return []
    count = config.sft.trajectories
    if config.sft.dialogues:
        examples = warmup.given_examples(Path(config.sft.dialogues), world, count)
        warmup.save_examples(path, examples)
        return examples
    with Progress("expert paths", count, "path") as progress:
        done = 0

        def on_done(i: int, total: int) -> None:
            """A task that was drawn twice is played once, so `total` may be below `count`."""
            nonlocal done
            now = count * i // total
            if i == total or now - done >= max(1, count // 10):
                progress.advance(now - done)
                done = now

        workers = min(usable_cores(), default_workers())
        cache = cache_folder("gold")
        examples = warmup.expert_examples(world, count, config.seed, workers, cache, on_done)
    warmup.save_examples(path, examples)
    return examples
