"""Prompt tokens to compute in a step, with a growing dialogue and with prompts that are rebuilt.

    python benchmarks/history.py --config=configs/scienceworld.py

Counted on the experts' paths of the config's environment, as the sampler counts (it prefills what
a prompt does not have in common with the path before it); no model runs. Any config override may
be added; env.history says how many steps a rebuilt prompt shows, the paper's 5 if it is not named.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from spark_jax.cache.pool import common_prefix
from spark_jax.envs.window import WHOLE_PATH, Window
from spark_jax.keep import cache_folder
from spark_jax.models.chat import Codec
from spark_jax.models.presets import load_model
from spark_jax.run import warmup
from spark_jax.run.config import load_config
from spark_jax.run.policy import Policy
from spark_jax.run.worlds import make_world
from spark_jax.types import Tree

NO_LIMIT = 10**9  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/scienceworld.py")
    parser.add_argument("--paths", type=int, default=50)
    options, overrides = parser.parse_known_args()
    overrides = ["env.history=5", *(item.removeprefix("--config.") for item in overrides)]
    config = load_config(options.config, overrides)
    world = make_world(config)
    examples = warmup.expert_examples(
        world,
        options.paths,
        config.seed,
        os.cpu_count() or 1,
        cache_folder("gold"),
        lambda *_: None,
    )
    texts = warmup.texts(examples)
    model = load_model(config.model.preset, config.model.path, config.seed, texts)
    print(table(examples, model.codec, world.window))


def table(examples: Sequence[warmup.Example], codec: Codec, window: Window) -> str:
    """Markdown, means over all steps."""
    policy = Policy(None, None, codec, None)
    dialogues = [warmup.dialogue_tree(e, policy, NO_LIMIT, WHOLE_PATH) for e in examples]
    rebuilt = [warmup.dialogue_tree(e, policy, NO_LIMIT, window) for e in examples]
    steps = sum(len(tree.nodes) - 1 for tree in rebuilt)
    whole, shared = (sum(count(tree) for tree in rebuilt) for count in (prompts, lacking))
    growing = sum(prompts(tree) for tree in dialogues)
    return "\n".join(
        [
            f"{len(rebuilt)} paths, {steps} steps, env.history={window.steps}, "
            f"env.prompt={window.style}",
            "",
            "| prompt tokens computed in a step | mean |",
            "|---|---|",
            f"| one growing dialogue | {growing / steps:.1f} |",
            f"| rebuilt, each prompt whole | {whole / steps:.1f} |",
            f"| rebuilt, common head kept | {shared / steps:.1f} ({shared / whole:.0%}) |",
        ]
    )


def prompts(tree: Tree) -> int:
    """Tokens of the contexts before the responses of a path."""
    return sum(len(node.context_ids) for node in tree.nodes[:-1])


def lacking(tree: Tree) -> int:
    """The same without what each prompt has in common with the prompt before it."""
    contexts = [node.context_ids for node in tree.nodes[:-1]]
    shared = sum(common_prefix(a, b) for a, b in zip(contexts, contexts[1:], strict=False))
    return prompts(tree) - shared


if __name__ == "__main__":
    main()
