"""The vote of a tree's leaves, on trees made by hand."""

import pytest

from spark_jax.rollout.vote import majority_leaf
from spark_jax.types import Node, Task, Tree


def tree(*leaves):
    """One leaf under the prompt for each (action, observation, outcome)."""
    nodes = [Node(0, -1, 0)]
    for i, (action, observation, outcome) in enumerate(leaves, 1):
        nodes.append(Node(i, 0, 1, action=action, observation=observation, outcome=outcome))
    return Tree(Task("toy", "t", 0), 8, 4, 2, "explore", nodes)


A, B = ("buy a", "Thanks."), ("buy b", "Thanks.")
CUT = ("look", "Nothing.")


@pytest.mark.parametrize(
    ("leaves", "chosen"),
    [
        ([(*A, "failure")], 1),
        ([(*A, "success"), (*B, "failure"), (*B, "failure")], 2),  # the majority, right or wrong
        ([(*A, "failure"), (*B, "success"), (*B, "success"), (*A, "failure")], 1),  # a tie
        ([(*CUT, "step_limit")] * 2 + [(*B, "failure")], 3),  # a path that was cut has no answer
        ([(*A, "step_limit"), (*CUT, "token_limit"), (*CUT, "step_limit")], 2),
        ([("buy a", "No.", "failure"), (*A, "failure"), (*A, "failure")], 2),  # answers count too
    ],
)
def test_the_majority_wins(leaves, chosen):
    assert majority_leaf(tree(*leaves)) == chosen
