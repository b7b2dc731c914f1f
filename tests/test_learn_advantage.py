import numpy as np
import pytest
from trees import random_tree

from spark_jax.learn import advantage
from spark_jax.learn.credit import (
    normaliser,
    record_advantages,
    response_tokens,
    segment_weights,
    sft_weights,
)
from spark_jax.types import Node, Task, Tree


def forked_tree(rewards=(1.0, 0.0, 0.0, 1.0)):
    """prompt -> 1 -> {3, 4 -> {5, 6}}, prompt -> 2; leaves 2, 3, 5, 6 with 1, 2, 3, 3 steps."""
    parents = [-1, 0, 0, 1, 1, 4, 4]
    steps = [0, 1, 1, 2, 2, 3, 3]
    lengths = [0, 2, 3, 1, 2, 4, 1]
    nodes = [
        Node(id=i, parent=p, step=s, response_ids=[7] * n, context_ids=[1])
        for i, (p, s, n) in enumerate(zip(parents, steps, lengths, strict=True))
    ]
    for leaf, reward in zip((2, 3, 5, 6), rewards, strict=True):
        nodes[leaf].reward = reward
    return Tree(Task("toy", "t", 0), 4, 2, 2, "explore_tag", nodes)


def per_leaf(matrix):
    """The one number of each leaf of a formula that gives one."""
    assert (matrix == matrix[:, :1]).all()
    return matrix[:, 0]


def test_leaf_group_by_hand():
    tree = forked_tree((1.0, 0.0, 0.0, 0.0))
    got = per_leaf(advantage.leaf_group(tree, np.ones(4)))
    # mean 1/4, sum of squares 3/4, ddof 1: std = sqrt(1/4) = 1/2
    np.testing.assert_allclose(got, np.array([0.75, -0.25, -0.25, -0.25]) / (0.5 + 1e-6))


def test_leaf_group_with_path_weights_by_hand():
    tree = forked_tree()
    w = advantage.path_weights(tree)
    np.testing.assert_allclose(w, [1, 1 / 2, 1 / 4, 1 / 4])
    got = per_leaf(advantage.leaf_group(tree, w))
    mean = (1 + 1 / 4) / 2
    squares = 1 * (1 - mean) ** 2 + 0.5 * mean**2 + 0.25 * mean**2 + 0.25 * (1 - mean) ** 2
    std = np.sqrt(squares / (2 - (1 + 1 / 4 + 2 / 16) / 2))
    np.testing.assert_allclose(got, (np.array([1, 0, 0, 1]) - mean) / (std + 1e-6))


def test_step_rows_by_hand():
    tree = forked_tree((1.0, 0.0, 0.0, 1.0))
    got = per_leaf(advantage.step_rows(tree, np.ones(4)))
    rows = np.array([1.0] + [0.0] * 2 + [0.0] * 3 + [1.0] * 3)  # one row for each step
    expected = (np.array([1, 0, 0, 1]) - rows.mean()) / (rows.std(ddof=1) + 1e-6)
    np.testing.assert_allclose(got, expected)


def test_step_rows_counts_turns_not_nodes():
    tree = forked_tree()
    for node in tree.nodes[5:]:
        node.step = 2  # reasoning (node 4) and action (5, 6) of one turn
    np.testing.assert_array_equal(advantage.path_steps(tree), [1, 2, 2, 2])


def test_no_std_by_hand():
    got = per_leaf(advantage.no_std(forked_tree(), np.ones(4)))
    np.testing.assert_allclose(got, [0.5, -0.5, -0.5, 0.5])


def test_sibling_by_hand():
    got = advantage.sibling(forked_tree((1.0, 0.0, 0.0, 1.0)), np.ones(4))
    # values: node 1 = 1/3 (leaves 3, 5, 6), 2 = 1, 3 = 0, 4 = 1/2, 5 = 0, 6 = 1
    roots = (1 / 3 + 1) / 2
    expected = [0, 1 / 3 - roots, 1 - roots, 0 - 1 / 4, 1 / 2 - 1 / 4, -1 / 2, 1 / 2]
    np.testing.assert_allclose(got, [expected] * 4)


def test_sibling_between_forks_takes_the_nearest_fork_above():
    tree = forked_tree()
    tree.nodes[6].reward = 0.0
    tree.nodes.append(Node(id=7, parent=6, step=4, reward=1.0))
    got = advantage.sibling(tree, np.ones(4))[0]
    assert got[7] == got[6] == 0.5


def test_mix():
    tree, w = forked_tree(), np.ones(4)
    mixed = advantage.mix(((0.25, advantage.no_std), (2.0, advantage.sibling)))(tree, w)
    expected = 0.25 * advantage.no_std(tree, w) + 2.0 * advantage.sibling(tree, w)
    np.testing.assert_allclose(mixed, expected)


@pytest.mark.parametrize("name", ["leaf_group", "step_rows", "no_std"])
@pytest.mark.parametrize("reward", [0.0, 0.7, 1.0])
def test_no_variance_is_exactly_zero(name, reward):
    tree = forked_tree((reward,) * 4)
    weights = np.array([0.3, 0.7, 0.9, 0.1])  # their mean of 0.7 is not quite 0.7
    assert not advantage.ADVANTAGES[name](tree, weights).any()


def test_one_leaf_is_zero():
    tree = forked_tree()
    tree.nodes = tree.nodes[:2]
    tree.nodes[1].reward, tree.nodes[1].tag = 1.0, "monitor"
    for formula in advantage.ADVANTAGES.values():
        assert not formula(tree, np.ones(1)).any()


@pytest.mark.parametrize("seed", range(5))
def test_path_weights_of_a_root_sum_to_one(seed):
    tree = random_tree(seed, roots=3)
    assert advantage.path_weights(tree).sum() == pytest.approx(3)


def test_segment_weights_add_up_the_leaves_below():
    tree, w = forked_tree(), np.array([1.0, 2.0, 3.0, 4.0])
    matrix = np.array([[0.5] * 7, [-1.0] * 7, [2.0] * 7, [-0.25] * 7])
    a_plus, a_minus, n, nll, context_nll = segment_weights(tree, matrix, w)
    assert not nll.any() and not context_nll.any()
    np.testing.assert_allclose(n[1:], [9, 1, 2, 7, 3, 4])
    np.testing.assert_allclose(a_plus[1:], [6, 0.5, 0, 6, 6, 0])
    np.testing.assert_allclose(a_minus[1:], [-3, 0, -2, -1, 0, -1])


def test_invalid_penalty_touches_that_step_only():
    tree = forked_tree()
    tree.nodes[4].valid = False
    zero = np.zeros((4, 7))
    a_plus, a_minus, n, *_ = segment_weights(tree, zero, np.ones(4), invalid_penalty=0.1)
    np.testing.assert_allclose(a_minus, [0, 0, 0, 0, -0.2, 0, 0])  # two leaves below node 4
    assert not a_plus.any()
    assert n[4] == 2


def test_context_counts_all_leaves():
    tree, zero = forked_tree(), np.zeros((4, 7))
    credit = segment_weights(tree, zero, np.array([1.0, 1.0, 2.0, 1.0]), context=0.5)
    np.testing.assert_allclose(credit.context_nll_G, [2.5, 2.0, 0.5, 0.5, 1.5, 1.0, 0.5])
    assert not credit.nll_G.any() and not credit.a_plus_G.any()


def test_normaliser_counts_token_copies_or_leaves():
    tree = forked_tree()
    np.testing.assert_allclose(response_tokens(tree), [3, 3, 8, 5])
    zero = np.zeros((4, 7))
    per_token = segment_weights(tree, zero, np.ones(4))
    assert normaliser([(tree, per_token)]) == 3 + 3 + 8 + 5
    per_leaf = segment_weights(tree, zero, np.ones(4), per_leaf=True)
    assert normaliser([(tree, per_leaf), (tree, per_leaf)]) == pytest.approx(8)


def test_record_advantages_writes_the_mean():
    tree, w = forked_tree(), np.ones(4)
    record_advantages(tree, segment_weights(tree, advantage.no_std(tree, w), w))
    assert tree.nodes[2].advantage == pytest.approx(0.5)
    assert tree.nodes[1].advantage == pytest.approx((-0.5 - 0.5 + 0.5) / 3)


def test_sft_weights_are_one_on_a_chain():
    tree = forked_tree()
    tree.nodes = tree.nodes[:2]
    assert list(sft_weights(tree).n_G) == [1, 1]


def test_gigpo_compares_steps_taken_in_the_same_state():
    """X -a-> X -b-> success; X -c-> Y -d-> failure: three steps start in X, one in Y."""
    nodes = [
        Node(0, -1, 0, observation="X", context_ids=[1]),
        Node(1, 0, 1, response_ids=[7], action="a", observation="X", context_ids=[1]),
        Node(2, 1, 2, response_ids=[7], action="b", observation="won", reward=1.0),
        Node(3, 0, 1, response_ids=[7], action="c", observation="Y", context_ids=[1]),
        Node(4, 3, 2, response_ids=[7], action="d", observation="lost"),
    ]
    tree = Tree(Task("toy", "t", 0), 2, 2, 1, "never", nodes)
    values = np.array([0.95, 1.0, 0.0])  # of steps 1, 2 and 3
    step = (values - values.mean()) / (values.std(ddof=1) + 1e-6)
    got = advantage.anchor_steps(tree, np.ones(2))
    np.testing.assert_allclose(got[0, [1, 2]], step[:2])
    np.testing.assert_allclose(got[1, [3, 4]], [step[2], 0.0])
    episode = per_leaf(advantage.leaf_group(tree, np.ones(2)))
    both = advantage.ADVANTAGES["gigpo"](tree, np.ones(2))
    np.testing.assert_allclose(both[0, [1, 2]], episode[0] + step[:2])
    np.testing.assert_allclose(both[1, [3, 4]], episode[1] + np.array([step[2], 0.0]))


def test_gigpo_does_not_take_silence_for_a_state():
    """After a response without an action the state is the one before it."""
    nodes = [
        Node(0, -1, 0, observation="X", context_ids=[1]),
        Node(1, 0, 1, response_ids=[7], observation="No action.", context_ids=[1]),
        Node(2, 1, 2, response_ids=[7], action="a", observation="won", reward=1.0),
        Node(3, 0, 1, response_ids=[7], action="b", observation="Y", context_ids=[1]),
        Node(4, 3, 2, response_ids=[7], observation="No action.", context_ids=[1]),
        Node(5, 4, 3, response_ids=[7], action="c", observation="lost"),
    ]
    got = advantage.anchor_steps(Tree(Task("toy", "t", 0), 2, 2, 1, "never", nodes), np.ones(2))
    values = np.array([0.95, 1.0, 0.0])  # steps 1, 2 and 3 start in X; steps 4 and 5 in Y
    expected = (values - values.mean()) / (values.std(ddof=1) + 1e-6)
    np.testing.assert_allclose([got[0, 1], got[0, 2], got[1, 3]], expected)
    assert got[1, 4] == got[1, 5] == 0.0


@pytest.mark.parametrize(
    "similarity, groups",
    [
        (1.0, "abcde"),
        (0.9, "abcde"),  # a and b: 2 * 4 / 10
        (0.8, "aacde"),  # c has 4 of the words of b, but 3 of those of a, the first of its group
        (0.6, "aaade"),
        (0.4, "aaaae"),  # d has 2 of a's words in order; e has the same words in another order
    ],
)
def test_similar_states_by_hand(similarity, groups):
    texts = {
        "a": "you see a red door",
        "b": "you see a blue door",
        "c": "you see one blue door",
        "d": "you wait here at door",
        "e": "door red a see you",
    }
    expected = {texts[k]: texts[g] for k, g in zip(texts, groups, strict=True)}
    assert advantage.groups_of_similar(texts.values(), similarity) == expected


def test_many_equal_words_are_no_junk():
    """difflib ignores what is frequent in a long sequence unless it is told not to."""
    one, other = [f"{name} {'wall ' * 300}{name}" for name in ("north", "south")]
    assert advantage.groups_of_similar([one, other], 0.99) == {one: one, other: one}


def test_gigpo_by_similarity_by_hand():
    """Steps 1 and 3 start in X; 2 and 4 in states that differ in one word of five."""
    nodes = [
        Node(0, -1, 0, observation="X", context_ids=[1]),
        Node(1, 0, 1, response_ids=[7], action="a", observation="you see a red door"),
        Node(2, 1, 2, response_ids=[7], action="b", observation="won", reward=1.0),
        Node(3, 0, 1, response_ids=[7], action="a", observation="you see a blue door"),
        Node(4, 3, 2, response_ids=[7], action="c", observation="lost"),
    ]
    tree, ones = Tree(Task("toy", "t", 0), 2, 2, 1, "never", nodes), np.ones(2)
    # Two values x and 0: mean x/2, std x/sqrt(2).
    first, second = ((x / 2) / (x / np.sqrt(2) + 1e-6) for x in (0.95, 1.0))
    exact = advantage.anchor_steps(tree, ones)
    np.testing.assert_allclose(exact[[0, 0, 1, 1], [1, 2, 3, 4]], [first, 0, -first, 0])
    similar = advantage.anchor_steps(tree, ones, similarity=0.8)
    expected = [first, second, -first, -second]
    np.testing.assert_allclose(similar[[0, 0, 1, 1], [1, 2, 3, 4]], expected)
    np.testing.assert_array_equal(advantage.anchor_steps(tree, ones, similarity=0.81), exact)
    episode = advantage.leaf_group(tree, ones)
    both = advantage.make_advantage("gigpo", 0.8)(tree, ones)
    np.testing.assert_allclose(both, episode + similar)
    np.testing.assert_allclose(advantage.make_advantage("gigpo")(tree, ones), episode + exact)


def test_gigpo_on_a_tree_that_all_lost_is_zero():
    assert not advantage.anchor_steps(forked_tree((0.0,) * 4), np.ones(4)).any()


def tagged_tree():
    """Two episodes of three steps: (tag, action, valid); the first succeeds."""
    episodes = [
        [("planning", "a", True), ("explore", "b", False), ("reflection", "c", True)],
        [("planning", "a", True), ("explore", "a", False), ("reflection", "a", True)],
    ]
    nodes = [Node(0, -1, 0, context_ids=[1])]
    for episode in episodes:
        for step, (tag, action, valid) in enumerate(episode, 1):
            parent = len(nodes) - 1 if step > 1 else 0
            nodes.append(
                Node(
                    len(nodes), parent, step, response_ids=[7], action=action, valid=valid, tag=tag
                )
            )
    nodes[3].outcome, nodes[3].reward, nodes[6].outcome = "success", 1.0, "failure"
    return Tree(Task("toy", "t", 0), 2, 2, 1, "never", nodes)


def test_tag_rewards_by_hand():
    tree = tagged_tree()
    rewards = advantage.tag_rewards(tree)
    np.testing.assert_array_equal(rewards[0, 1:4], [1, 1, 1])
    np.testing.assert_array_equal(rewards[1, 4:7], [0, 0, 0])  # lost, "a" again, "a" again
    tree.nodes[5].action = "b"  # new in its own episode, whatever the other one did
    tree.nodes[2].valid = True  # nothing to reflect on
    np.testing.assert_array_equal(advantage.tag_rewards(tree)[[0, 1], [3, 5]], [0, 1])
    tree.nodes[5].tag = "planning"  # a reflection as the first step has nothing before it
    tree.nodes[1].tag, tree.nodes[2].tag = "reflection", "monitor"
    np.testing.assert_array_equal(advantage.tag_rewards(tree)[[0, 0, 1], [1, 2, 5]], [0, 0, 0])


def test_rlvmr_by_hand():
    """Each tag has the rewards 1 and 0: mean 1/2, std sqrt(1/2)."""
    tree = tagged_tree()
    step = 0.5 / (np.sqrt(0.5) + 1e-6)
    got = advantage.ADVANTAGES["rlvmr"](tree, np.ones(2))
    np.testing.assert_allclose(got[0, 1:4], 2 * step)  # as large as the episode's part
    np.testing.assert_allclose(got[1, 4:7], -2 * step)
    tree.nodes[3].tag = tree.nodes[5].tag = ""
    got = advantage.ADVANTAGES["rlvmr"](tree, np.ones(2))
    # Explore and reflection were met once each: no comparison.
    np.testing.assert_allclose(got[0, 1:4], [2 * step, step, step - 0.1])
    np.testing.assert_allclose(got[1, 4:7], [-2 * step, -step - 0.1, -step])


def test_the_tags_of_another_kind_are_not_compared():
    tree = tagged_tree()
    tree.nodes[2].tag, tree.nodes[5].tag = "explore", "monitor"
    assert not advantage.tagged_steps(tree, np.ones(2))[[0, 1], [2, 5]].any()
