"""`algo.name=react`: the model is prompted as it is, and nothing is trained."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from spark_jax.run.config import start_or_resume
from spark_jax.run.evalfile import PROMPTED, eval_metrics
from spark_jax.run.evaluator import Request, evaluate
from spark_jax.run.metrics import MetricsWriter
from spark_jax.run.rules import FROM_SCRATCH
from spark_jax.run.summary import print_summary
from spark_jax.types import UserError


def run(config: ConfigDict, workdir: Path | str) -> list[dict[str, Any]]:
    """Evaluates the model's own weights on the panels of a run; returns the one evaluation. Stopped
    and started again, it goes on with the episodes that are missing.

    Raises UserError for a model without weights, and what `evaluate` raises.
    """
    workdir, began = Path(workdir), time.perf_counter()
    path = Path(config.model.path).expanduser()
    if config.model.preset in FROM_SCRATCH and not (path / "config.json").is_file():
        raise UserError(
            f"config.model.path={config.model.path} has no config.json, so no weights to prompt; "
            "give the folder of a whole model, for example one of spark_jax.export."
        )
    start_or_resume(workdir, config)
    request = Request(
        PROMPTED,
        tuple(config.eval.splits),
        config.eval.episodes,
        temperature=config.eval.temperature,
        seed=config.seed,
        checkpoint="initial",
    )
    entry = evaluate(config, workdir, request)
    with MetricsWriter(workdir, last_step=-1) as metrics:  # one line, of the last call
        seconds = time.perf_counter() - began
        metrics.write(0, "eval", eval_metrics(entry) | {"time/eval_s": seconds})
    print_summary([entry])
    return [entry]
