"""The pages that a recorded tree went through, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spark_jax.envs.webshop.environment import WebShopEnvironment
from spark_jax.envs.webshop.pages import Style
from spark_jax.types import Task


def tree_pages(
    tree: Mapping[str, Any], data_dir: str, human: bool, style: Style
) -> dict[int, list[tuple[str, str]]]:
    """Node -> the page after its step (pages.page_parts), by playing the tree again.

    A fork copies the shopper. Where the shop answers something else than it did then (another
    catalogue, swapped names), the nodes below have no page: none is better than a wrong one.
    """
    task = tree["task"]
    env = WebShopEnvironment(data_dir, human, style)
    env.start(Task(**task))
    pages, shoppers = {0: env.parts()}, {0: env}
    for node in tree["nodes"][1:]:
        before = shoppers.get(node["parent"])
        if before is None:
            continue
        env = before.copy()
        # A node of reasoning alone (tree.fork_at=same_step) stays where it is.
        if node["action"] and env.step(node["action"]).observation != node["observation"]:
            continue
        pages[node["id"]], shoppers[node["id"]] = env.parts(), env
    return pages
