"""Random trees for tests: any shape that the rollouts can produce, with random tokens."""

from __future__ import annotations

import random

from spark_jax.types import Node, Task, Tree


def random_tree(
    seed: int,
    *,
    leaves: int = 8,
    roots: int = 3,
    branch: int = 3,
    depth: int = 6,
    response: int = 5,
    context: int = 6,
    prompt: int = 9,
    vocab: int = 64,
    fork: float = 0.5,
    invalid: float = 0.2,
    same_step: bool = False,
) -> Tree:
    """A tree of at most `leaves` leaves whose paths are at most `depth` steps deep, with segments
    of random length up to `response` and `context` tokens."""
    rng = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(vocab) for _ in range(rng.randint(low, high))]

    nodes = [Node(id=0, parent=-1, step=0, context_ids=ids(max(1, prompt // 2), prompt))]
    nodes[0].requested = nodes[0].granted = roots

    def child(parent: int, step: int) -> int:
        response_ids = ids(1, response)
        nodes.append(
            Node(
                id=len(nodes),
                parent=parent,
                step=step,
                response_ids=response_ids,
                logprobs=[-rng.uniform(0.1, 6.0) for _ in response_ids],
                context_ids=ids(0 if same_step else 1, context),
                valid=rng.random() >= invalid,
            )
        )
        return len(nodes) - 1

    running = [child(0, 1) for _ in range(roots)]
    count = roots
    for step in range(2, depth + 1):
        following = []
        for node in running:
            if step > 2 and rng.random() < 0.15:
                continue  # this path ends here
            wanted = rng.randint(2, branch) if branch > 1 and rng.random() < fork else 1
            granted = min(wanted, leaves - count + 1)
            nodes[node].requested, nodes[node].granted = wanted, granted
            nodes[node].spark = wanted > 1
            following += [child(node, step) for _ in range(granted)]
            count += granted - 1
        running = following
    tree = Tree(
        task=Task(env="toy", type="random", variation=seed),
        leaves=leaves,
        roots=roots,
        branch=branch,
        signal="explore_tag",
        nodes=nodes,
    )
    for leaf in tree.leaf_ids():
        nodes[leaf].done = True
        nodes[leaf].context_ids = []
        nodes[leaf].reward = float(rng.random() < 0.5)
        nodes[leaf].outcome = "success" if nodes[leaf].reward else "step_limit"
    return tree
