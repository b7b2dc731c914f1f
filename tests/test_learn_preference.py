"""Pairs and DPO by hand, and the gradient against one written pair by pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_learn_advantage import forked_tree
from test_learn_step import random_params, small_config
from trees import random_tree

from spark_jax.learn.credit import sft_weights
from spark_jax.learn.loss import sft_loss
from spark_jax.learn.optimisers import adamw
from spark_jax.learn.pack import PackedBatch, chain_tree, node_sums, pack_trees
from spark_jax.learn.preference import (
    Pairs,
    dpo_loss,
    flat_pairs,
    only_paired,
    pair_leaves,
    path_coefficients,
    path_sums,
    path_weights,
    with_expert,
)
from spark_jax.learn.step import make_steps, put_batch, token_logps

LOGP, REF = np.array([-1.0, -4.0, -2.0]), np.array([-2.0, -3.0, -2.0])  # log-ratios 1, -1, 0
PAIRS = Pairs(np.array([0, 0]), np.array([1, 2]))  # margins 2 and 1


def test_dpo_loss_by_hand():
    loss, margins = dpo_loss(jnp.asarray(LOGP), jnp.asarray(REF), PAIRS, 0.5)
    np.testing.assert_allclose(margins, [2.0, 1.0])
    assert float(loss) == pytest.approx((np.log(1 + np.exp(-1.0)) + np.log(1 + np.exp(-0.5))) / 2)
    assert float(dpo_loss(jnp.asarray(REF), jnp.asarray(REF), PAIRS, 0.5)[0]) == pytest.approx(
        np.log(2)
    )


def test_path_coefficients_by_hand():
    """beta sigmoid(-beta m) / P for a pair: what is already told apart weighs less."""
    first, second = (0.5 / (1 + np.exp(0.5 * m)) / 2 for m in (2.0, 1.0))
    got, _, _ = path_coefficients(LOGP, REF, PAIRS, 0.5)
    np.testing.assert_allclose(got, [first + second, -first, -second], rtol=1e-6)
    extreme, loss, _ = path_coefficients(LOGP - np.array([900.0, 0, 0]), REF, PAIRS, 0.5)
    np.testing.assert_allclose(extreme, [0.5, -0.25, -0.25], rtol=1e-6)
    assert np.isfinite(loss)


def chain(score=100.0):
    expert = chain_tree([1], [([5, 5], [2]), ([6], [2])])
    expert.nodes[-1].score = score
    return expert


def outcomes(tree, *names):
    for leaf, name in zip(tree.leaf_ids(), names, strict=True):
        tree.nodes[leaf].outcome, tree.nodes[leaf].reward = name, float(name == "success")
    return tree


def test_failures_are_paired_with_the_expert():
    tree = outcomes(forked_tree(), "success", "failure", "step_limit", "success")
    both, expert = with_expert(tree, chain())
    assert expert == 4 and both.path(both.leaf_ids()[4]) == [0, 7, 8]
    assert [both.nodes[i].response_ids for i in (7, 8)] == [[5, 5], [6]]
    assert pair_leaves(both, expert) == [(4, 1), (4, 2)]
    assert len(tree.nodes) == 7, "the sampled tree was changed"


def test_without_an_expert_the_better_path_is_the_other_half():
    tree = outcomes(forked_tree(), "failure", "success", "success", "step_limit")
    assert with_expert(tree, None) == (tree, None)
    other = chain()
    other.nodes[0].context_ids = [9]  # another prompt
    assert with_expert(tree, other) == (tree, None)
    assert pair_leaves(tree, None) == [(1, 0), (1, 3)]
    outcomes(tree, "failure", "failure", "step_limit", "failure")
    assert pair_leaves(tree, None) == []  # all equally bad
    tree.nodes[tree.leaf_ids()[2]].score = 50.0
    assert pair_leaves(tree, None) == [(2, 0), (2, 1), (2, 3)]
    outcomes(tree, "success", "success", "success", "success")
    assert pair_leaves(tree, None) == []


def test_paths_in_no_pair_are_left_out():
    tree = outcomes(forked_tree(), "success", "failure", "step_limit", "success")
    small, pairs = only_paired(*(lambda both, e: (both, pair_leaves(both, e)))(
        *with_expert(tree, chain())
    ))  # fmt: skip
    assert pairs == [(2, 0), (2, 1)]
    # Left: 0, 1, 3, 4, 5 of the old tree and the expert's two.
    assert [n.parent for n in small.nodes] == [-1, 0, 1, 1, 3, 0, 5]
    assert [n.id for n in small.nodes] == list(range(7))
    assert [len(n.response_ids) for n in small.nodes] == [0, 2, 1, 2, 4, 2, 1]
    flat = flat_pairs([(small, pairs), (small, pairs[:1])])
    assert flat.better_P.tolist() == [2, 2, 5] and flat.worse_P.tolist() == [0, 1, 3]


@pytest.mark.parametrize("row_tokens", [90, 400])
def test_node_sums_find_the_targets_of_each_node(row_tokens):
    """The tokens themselves, added up through the packing, rows split or not."""
    items = [
        (tree, path_weights(tree, np.ones(len(tree.leaf_ids()))))
        for tree in (random_tree(seed) for seed in range(4))
    ]
    batch, stats = pack_trees(items, row_tokens, row_tokens)
    assert (stats.pieces > 4) == (row_tokens == 90)
    values = np.take_along_axis(batch.tokens_RT, batch.target_RM, 1) * 1.0
    for (tree, _), got in zip(items, node_sums(items, values, row_tokens, row_tokens), strict=True):
        np.testing.assert_array_equal(got, [sum(n.response_ids) for n in tree.nodes])
        expected = [
            sum(sum(tree.nodes[i].response_ids) for i in tree.path(leaf))
            for leaf in tree.leaf_ids()
        ]
        np.testing.assert_array_equal(path_sums(tree, got), expected)


def test_the_gradient_is_that_of_dpo_over_separate_paths():
    """Shared tokens, trees cut into rows, a path in several pairs: as if every path stood alone."""
    config, row = small_config("float32"), 96
    params, reference = random_params(config, 0), random_params(config, 1)
    trees = [random_tree(seed, leaves=5) for seed in (1, 2)]
    pairs = flat_pairs([(trees[0], [(0, 1), (0, 2), (3, 1)]), (trees[1], [(1, 0)])])
    beta = 0.3

    def leaf_chain(tree, leaf):
        nodes = [tree.nodes[i] for i in tree.path(leaf)]
        turns = [(n.response_ids, n.context_ids) for n in nodes[1:]]
        return chain_tree(nodes[0].context_ids, turns)

    chains = [leaf_chain(tree, leaf) for tree in trees for leaf in tree.leaf_ids()]
    alone = [pack_trees([(c, sft_weights(c))], row, row)[0] for c in chains]
    alone = PackedBatch(*(np.concatenate(x) for x in zip(*alone, strict=True)))

    @jax.jit
    def sums_alone(p):
        return token_logps(p, put_batch(alone), config=config)[0].sum(1)

    ref_S = sums_alone(reference)
    by_hand = jax.value_and_grad(lambda p: dpo_loss(sums_alone(p), ref_S, pairs, beta)[0])
    expected, slope = jax.jit(by_hand)(params)

    steps = make_steps(config, sft_loss, adamw())

    def packed(coefficient_S):
        counts = [len(tree.leaf_ids()) for tree in trees]
        shares = np.split(coefficient_S, np.cumsum(counts)[:-1])
        items = [(t, path_weights(t, c)) for t, c in zip(trees, shares, strict=True)]
        return items, put_batch(pack_trees(items, row, row)[0])

    items, batch = packed(np.zeros(len(chains)))
    assert batch.tokens_RT.shape[0] > 1

    def sums(p):
        by_node = node_sums(items, np.asarray(steps.score(p, batch)[0]), row, row)
        return np.concatenate([path_sums(t, g) for t, g in zip(trees, by_node, strict=True)])

    coefficient_S, loss, _ = path_coefficients(sums(params), sums(reference), pairs, beta)
    assert loss == pytest.approx(float(expected), rel=1e-4)
    grads = steps.gradient(params, steps.zero(params), packed(coefficient_S)[1], 1.0).grads
    size = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(slope))
    for got, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(slope), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-4 * size)
    assert size > 1e-3


def test_path_weights_add_up_the_leaves_below():
    weights = path_weights(forked_tree(), np.array([1.0, -2.0, 3.0, 4.0]))
    np.testing.assert_array_equal(weights.nll_G[1:], [5, 1, -2, 7, 3, 4])
    np.testing.assert_array_equal(weights.n_G[1:], [3, 1, 1, 2, 1, 1])
    assert not (weights.a_plus_G.any() or weights.a_minus_G.any() or weights.context_nll_G.any())
