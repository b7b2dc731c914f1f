"""`trees/<iteration>.jsonl`: every tree of an iteration, one a line."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterable
from typing import Any

from spark_jax.run.files import write_text
from spark_jax.types import Node, Task, Tree, UserError

_DIGITS = 6  # enough to read; a log-prob has no more in float32


def write_trees(workdir: pathlib.Path | str, iteration: int, trees: Iterable[Tree]) -> pathlib.Path:
    """Writes `trees/<iteration>.jsonl` whole or not at all, replacing an older one.

    Returns:
      the file's path.
    """
    path = tree_path(workdir, iteration)
    text = "".join(json.dumps(_tree(tree)) + "\n" for tree in trees)
    write_text(path, text)
    return path


def read_trees(path: pathlib.Path | str) -> list[dict[str, Any]]:
    """The trees of one file as plain dicts, as they are in the file.

    Raises:
      UserError: the file is missing, or a line is not a tree.
    """
    path = pathlib.Path(path)
    out = []
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"there is no tree file {path}; a run writes one an iteration.") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        try:
            tree = json.loads(line)
            nodes = tree["nodes"]
            ordered = all(n["id"] == i and n["parent"] < i for i, n in enumerate(nodes))
            if not nodes or not ordered or nodes[0]["parent"] != -1:
                raise ValueError("its nodes are not in order")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"line {number} of {path} is not a tree ({error}); let the run write it again."
            ) from None
        out.append(tree)
    return out


def tree_path(workdir: pathlib.Path | str, iteration: int) -> pathlib.Path:
    """`trees/<iteration>.jsonl` of a work folder."""
    return pathlib.Path(workdir) / "trees" / f"{iteration}.jsonl"


def tree_iterations(workdir: pathlib.Path | str) -> list[int]:
    """Iterations that have a tree file, in order."""
    folder = pathlib.Path(workdir) / "trees"
    return sorted(int(p.stem) for p in folder.glob("*.jsonl") if p.stem.isdigit())


def drop_later_trees(workdir: pathlib.Path | str, last_iteration: int) -> None:
    """Removes the files of iterations after the one that a run resumes from."""
    for iteration in tree_iterations(workdir):
        if iteration > last_iteration:
            tree_path(workdir, iteration).unlink()


def _tree(tree: Tree) -> dict[str, Any]:
    return {
        "task": _task(tree.task),
        "leaves": tree.leaves,
        "roots": tree.roots,
        "branch": tree.branch,
        "signal": tree.signal,
        "nodes": [_node(node) for node in tree.nodes],
    }


def _task(task: Task) -> dict[str, Any]:
    return {
        "env": task.env,
        "type": task.type,
        "variation": task.variation,
        "seed": task.seed,
        "split": task.split,
    }


def _node(node: Node) -> dict[str, Any]:
    """One node as it is in the file. `prompt` and `prompt_tokens` are what follows the response
    (for node 0, and with `env.history` for all nodes, the whole prompt of the next one); `logprob`
    is the sum over the response's tokens."""
    return {
        "id": node.id,
        "parent": node.parent,
        "step": node.step,
        "prompt": node.prompt,
        "response": node.response,
        "action": node.action,
        "observation": node.observation,
        "spark": node.spark,
        "requested": node.requested,
        "granted": node.granted,
        "reinvested": node.reinvested,
        "prompt_tokens": len(node.context_ids),
        "response_tokens": len(node.response_ids),
        "logprob": round(math.fsum(node.logprobs), _DIGITS),
        "reward": node.reward,
        "done": node.done,
        "outcome": node.outcome,
        "advantage": None if node.advantage is None else round(float(node.advantage), _DIGITS),
    }
