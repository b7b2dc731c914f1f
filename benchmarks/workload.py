"""Recorded trees as counts of tokens: what every engine of benchmarks/rollout.py has to produce.

    python benchmarks/workload.py runs/tiny --iteration 13 --out benchmarks/workloads/x.json

A workload is a JSON file with one list of nodes a tree; a node is [parent, response tokens, context
tokens], depth-first, and node 0 is the prompt. The texts come from the tree files of a run; they
are counted with the tokenizer of the model that the benchmark runs, not of the one that wrote them.
--instructions puts the instructions of env.prompt=full before every prompt, as the presets of
instruction-tuned models do; a model trained from scratch reads none.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from spark_jax.run.files import write_text  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Shape:
    """A tree as counts. Lists are by node; a parent comes before its children."""

    parent: list[int]
    response: list[int]
    context: list[int]  # tokens between this response and the next; at node 0 the prompt

    @property
    def children(self) -> list[list[int]]:
        out: list[list[int]] = [[] for _ in self.parent]
        for node, parent in enumerate(self.parent[1:], 1):
            out[parent].append(node)
        return out

    @property
    def leaves(self) -> list[int]:
        return [node for node, below in enumerate(self.children) if not below]

    def path(self, node: int) -> list[int]:
        """Nodes from the prompt to `node`."""
        out = [node]
        while self.parent[out[-1]] >= 0:
            out.append(self.parent[out[-1]])
        return out[::-1]

    @property
    def response_tokens(self) -> int:
        """Unique response tokens: what the tree is worth."""
        return sum(self.response)

    def separate(self) -> list[Shape]:
        """One tree without forks for each leaf."""
        out = []
        for leaf in self.leaves:
            path = self.path(leaf)
            out.append(
                Shape(
                    list(range(-1, len(path) - 1)),
                    [self.response[node] for node in path],
                    [self.context[node] for node in path],
                )
            )
        return out

    def longest(self) -> int:
        """Tokens of the longest path."""
        return max(
            sum(self.response[node] + self.context[node] for node in self.path(leaf))
            for leaf in self.leaves
        )


def load(path: pathlib.Path | str) -> list[Shape]:
    trees = json.loads(pathlib.Path(path).read_text())["trees"]
    return [Shape(*([node[i] for node in nodes] for i in range(3))) for nodes in trees]


def record(
    run: pathlib.Path, iteration: int, preset: str, instructions: bool = False
) -> list[list[list[int]]]:
    """The trees of an iteration of `run`, counted with the tokenizer of `preset`."""
    from spark_jax.envs.scienceworld.environment import system_prompt
    from spark_jax.models.presets import load_model
    from spark_jax.run.treefile import read_trees, tree_path

    codec = load_model(preset).codec
    system = system_prompt("full") if instructions else ""
    out = []
    for tree in read_trees(tree_path(run, iteration)):
        nodes = []
        for node in tree["nodes"]:
            response = len(codec.encode_response(node["response"])) if node["response"] else 0
            if node["parent"] < 0:
                context = len(codec.encode_prompt(system, node["prompt"]))
            else:
                context = len(codec.encode_turn(node["prompt"], ended=False))
            nodes.append([node["parent"], response, context])
        out.append(nodes)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path, help="work folder of a run")
    parser.add_argument("--iteration", type=int, default=0)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--instructions", action="store_true", help="before every prompt")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    trees = record(options.run, options.iteration, options.model, options.instructions)
    lines = ",\n".join(json.dumps(tree, separators=(",", ":")) for tree in trees)
    head = json.dumps({"tokenizer": options.model, "iteration": options.iteration})[1:-1]
    write_text(options.out, f'{{{head},\n"trees":[\n{lines}\n]}}\n')
    shapes = load(options.out)
    print(
        f"{len(shapes)} trees, {sum(len(s.leaves) for s in shapes)} leaves, "
        f"{sum(s.response_tokens for s in shapes)} unique response tokens, longest path "
        f"{max(s.longest() for s in shapes)} tokens"
    )


if __name__ == "__main__":
    main()
