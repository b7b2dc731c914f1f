"""The vote of a tree's leaves, on trees made by hand."""

import pytest

from spark_jax.rollout.vote import majority_leaf
from spark_jax.types import Node, Task, Tree


def tree(*leaves):
    """For each (page, action, answer, outcome) a step that leads to the page, and a leaf below."""
    nodes = [Node(0, -1, 0)]
    for page, action, answer, outcome in leaves:
        nodes.append(Node(len(nodes), 0, 1, action="open", observation=page))
        leaf = Node(len(nodes), len(nodes) - 1, 2, action=action, observation=answer)
        leaf.outcome = outcome
        leaf.reward = float(outcome == "success")
        nodes.append(leaf)
    return Tree(Task("toy", "t", 0), 8, 4, 2, "explore", nodes)


def chosen(*leaves):
    """Which of the leaves, from 0."""
    return majority_leaf(tree(*leaves)) // 2 - 1


RED, BLUE = ("A red mug.", "buy", "Your score: 40"), ("A blue mug.", "buy", "Your score: 100")


@pytest.mark.parametrize(
    ("leaves", "winner"),
    [
        ([(*RED, "failure")], 0),
        ([(*BLUE, "success"), (*RED, "failure"), (*RED, "failure")], 1),  # right or wrong
        ([(*RED, "failure"), (*BLUE, "success"), (*BLUE, "success"), (*RED, "failure")], 0),  # tie
        ([("Home.", "look", "", "step_limit"), (*RED, "failure"), (*RED, "failure")], 1),
    ],
)
def test_the_majority_wins(leaves, winner):
    assert chosen(*leaves) == winner


def test_what_is_bought_counts_and_not_what_the_shop_answers():
    pen = ("A pen.", "buy", "Your score: 0", "failure")
    hat = ("A hat.", "buy", "Your score: 0", "failure")
    bag = ("A bag.", "buy", "Your score: 0", "failure")
    assert chosen(pen, hat, (*BLUE, "success"), bag, (*BLUE, "success")) == 2


def test_reasoning_that_is_a_step_of_its_own_is_looked_through():
    """fork_at=same_step: the last action is below a node without one."""
    grown = tree((*RED, "failure"), (*BLUE, "success"), (*BLUE, "success"))
    for leaf in (2, 4, 6):
        above = grown.nodes[leaf].parent
        grown.nodes.append(Node(len(grown.nodes), above, 1, spark=True))
        grown.nodes[leaf].parent = len(grown.nodes) - 1
    order = [0, 1, 3, 5, 7, 8, 9, 2, 4, 6]  # parents come before their children
    place = {old: new for new, old in enumerate(order)}
    nodes = [grown.nodes[old] for old in order]
    for node in nodes:
        node.id, node.parent = place[node.id], place.get(node.parent, -1)
    grown.nodes = nodes
    assert majority_leaf(grown) == place[4]


def test_a_response_without_an_action_decides_nothing():
    babble = ("Home.", "", "", "step_limit")
    assert chosen(babble, babble, (*RED, "failure")) == 2
    assert chosen(babble, babble) == 0


def test_an_episode_that_was_won_is_no_better_a_vote_than_one_that_was_cut():
    """A game of ALFWorld ends only when it is won: ending must not tell the winner."""
    lost = ("A shelf.", "go to desk 1", "Nothing.", "step_limit")
    won = ("A sink.", "put mug 1 in sink 1", "You put it.", "success")
    assert chosen(lost, won, lost) == 0
