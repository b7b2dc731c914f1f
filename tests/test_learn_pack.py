import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import random_tree

from spark_jax.learn.advantage import LEAF_WEIGHTS, leaf_group
from spark_jax.learn.credit import (
    context_targets,
    likelihood_normaliser,
    normaliser,
    segment_weights,
    sft_weights,
)
from spark_jax.learn.pack import chain_tree, linear_tokens, micro_batches, pack_trees
from spark_jax.types import Node, UserError


def weighed(tree, kind="path"):
    w = LEAF_WEIGHTS[kind](tree)
    return tree, segment_weights(tree, leaf_group(tree, w), w, invalid_penalty=0.05)


def paths_of(batch):
    """Every target as (tokens it sees in order of position, its own id, numbers), read off the
    packed arrays through the mask alone."""
    out = []
    for r in range(batch.tokens_RT.shape[0]):
        index = np.arange(batch.tokens_RT.shape[1])
        for m in np.flatnonzero(batch.n_RM[r] > 0):
            t, p = batch.target_RM[r, m], batch.pred_RM[r, m]
            seen = np.flatnonzero((index <= p) & (p < batch.end_RT[r]))
            assert list(batch.position_RT[r, seen]) == list(range(seen.size))
            assert batch.position_RT[r, t] == seen.size
            numbers = [batch[i][r, m] for i in (5, 7, 8, 9)]
            out.append((tuple(batch.tokens_RT[r, seen]), batch.tokens_RT[r, t], *numbers))
    return sorted(out)


def expected_targets(items):
    out = []
    for tree, weights in items:
        for node in tree.nodes[1:]:
            before = []
            for i in tree.path(node.parent):
                before += tree.nodes[i].response_ids + tree.nodes[i].context_ids
            for k, token in enumerate(node.response_ids):
                numbers = [node.logprobs[k]] + [weights[i][node.id] for i in range(3)]
                out.append((tuple(before + node.response_ids[:k]), token, *numbers))
    return sorted(out)


@settings(max_examples=60, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 10_000), min_size=1, max_size=5),
    room=st.integers(0, 120),
    depth=st.integers(1, 8),
    branch=st.integers(1, 4),
    same_step=st.booleans(),
    rows_multiple=st.integers(1, 3),
)
def test_every_target_once_with_its_history_and_weights(
    seeds, room, depth, branch, same_step, rows_multiple
):
    trees = [
        random_tree(s, depth=depth, branch=branch, same_step=same_step, leaves=9) for s in seeds
    ]
    items = [weighed(t) for t in trees]
    longest = max(
        sum(len(t.nodes[i].response_ids) + len(t.nodes[i].context_ids) for i in t.path(leaf))
        for t in trees
        for leaf in t.leaf_ids()
    )
    row_tokens = longest + room
    batch, stats = pack_trees(items, row_tokens, row_tokens, rows_multiple, dtype=np.float64)
    assert paths_of(batch) == expected_targets(items)
    assert batch.tokens_RT.shape[0] % rows_multiple == 0
    assert stats.linear_tokens == sum(linear_tokens(t) for t in trees)
    assert stats.packed_tokens <= stats.linear_tokens
    if room == 120 and len(seeds) == 1 and stats.pieces == 1:
        segments = [len(n.response_ids) + len(n.context_ids) for n in trees[0].nodes]
        assert stats.packed_tokens == sum(segments)


@settings(max_examples=20, deadline=None)
@given(seeds=st.lists(st.integers(0, 10_000), min_size=1, max_size=4))
def test_deterministic(seeds):
    items = [weighed(random_tree(s)) for s in seeds]
    for a, b in zip(pack_trees(items, 128)[0], pack_trees(items, 128)[0], strict=True):
        np.testing.assert_array_equal(a, b)


def test_padding_sees_only_itself_and_weighs_nothing():
    batch, stats = pack_trees([weighed(random_tree(0))], 512, rows_multiple=3)
    assert (stats.rows, batch.tokens_RT.shape) == (1, (3, 512))
    own = np.arange(1, 513)
    np.testing.assert_array_equal(
        batch.end_RT[0, stats.packed_tokens :], own[stats.packed_tokens :]
    )
    np.testing.assert_array_equal(batch.end_RT[1:], [own, own])
    assert (batch.n_RM[0] > 0).sum() == stats.targets
    assert not batch.n_RM[1:].any()


def test_several_trees_share_a_row_in_first_fit_decreasing_order():
    chains = [chain_tree([1] * (n - 1), [([2], [])]) for n in (30, 70, 50, 20)]
    batch, stats = pack_trees([(t, sft_weights(t)) for t in chains], 100)
    assert stats.rows == 2 and stats.pieces == 4
    # 70 + 30, then 50 + 20
    assert [int(e) for e in batch.end_RT[:, 0]] == [70, 50]
    assert int(batch.end_RT[0, 70]) == 100


def test_split_tree_repeats_the_prefix_as_context_only():
    tree = random_tree(3, leaves=12, roots=4, branch=3, depth=6)
    item = weighed(tree)
    whole, one = pack_trees([item], 512)
    split, many = pack_trees([item], 96)
    assert one.pieces == 1 and many.pieces > 1
    assert one.packed_tokens < many.packed_tokens < many.linear_tokens
    assert one.targets == many.targets
    for field in ("a_plus_RM", "a_minus_RM", "n_RM", "nll_RM"):
        totals = [getattr(b, field).astype(np.float64).sum() for b in (whole, split)]
        assert totals[0] == pytest.approx(totals[1], rel=1e-6)


def test_a_row_short_of_targets_splits_too():
    tree = random_tree(3, leaves=12, roots=4, branch=3, depth=6)
    batch, stats = pack_trees([weighed(tree)], 512, row_targets=40, dtype=np.float64)
    assert stats.pieces > 1 and stats.targets > 40
    assert paths_of(batch) == expected_targets([weighed(tree)])


def test_a_path_longer_than_a_row_names_the_key():
    tree = chain_tree([1] * 40, [([2] * 30, [])])
    item = (tree, sft_weights(tree))
    with pytest.raises(UserError, match=r"70 tokens .* holds 64; raise train\.row_tokens"):
        pack_trees([item], 64)
    with pytest.raises(UserError, match=r"30 target tokens .* 20; raise train\.row_targets"):
        pack_trees([item], 128, row_targets=20)


def test_chain_tree_is_the_dialogue():
    tree = chain_tree([1, 2], [([3, 4], [5, 6, 7]), ([8], [9])])
    batch, stats = pack_trees([(tree, sft_weights(tree))], 10)
    assert list(batch.tokens_RT[0, :8]) == [1, 2, 3, 4, 5, 6, 7, 8]  # the last context is dropped
    assert list(batch.target_RM[0, :3]) == [2, 3, 7]
    assert list(batch.pred_RM[0, :3]) == [1, 2, 6]
    assert list(batch.n_RM[0]) == [1, 1, 1, 0, 0]
    assert stats.packed_tokens == stats.linear_tokens == 8


def test_context_may_be_predicted_too():
    tree = chain_tree([1, 2, 9], [([3, 4], [5, 6]), ([], [7]), ([8], [9])])
    weights = sft_weights(tree, context=0.5)
    batch, stats = pack_trees([(tree, weights)], 10, row_targets=9)
    assert list(batch.tokens_RT[0, :9]) == [1, 2, 9, 3, 4, 5, 6, 7, 8]
    # Nothing predicts the first token; the last context (a second 9) is not laid out at all.
    assert list(batch.target_RM[0]) == [1, 2, 3, 4, 5, 6, 7, 8, 0]
    assert list(batch.pred_RM[0]) == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    assert list(batch.n_RM[0]) == [0, 0, 1, 1, 0, 0, 0, 1, 0]
    assert list(batch.nll_RM[0]) == [0.5, 0.5, 1, 1, 0.5, 0.5, 0.5, 1, 0]
    assert stats.targets == 8 and likelihood_normaliser([(tree, weights)]) == 3 + 0.5 * 5
    assert normaliser([(tree, weights)]) == 3


def test_context_of_a_forked_tree_is_a_target_once():
    tree = random_tree(3, leaves=12, roots=4, branch=3, depth=6)
    weights = sft_weights(tree, context=0.25)
    batch, stats = pack_trees([(tree, weights)], 128, row_targets=128, dtype=np.float64)
    assert stats.pieces > 1
    assert batch.n_RM.sum() == pytest.approx(normaliser([(tree, weights)]))
    assert batch.nll_RM.sum() == pytest.approx(likelihood_normaliser([(tree, weights)]))
    responses = sum(len(node.response_ids) for node in tree.nodes if node.valid)
    assert stats.targets - responses == context_targets(tree).sum() > 0
    # Predecessors: the position of a target is one more than that of what predicts it.
    seen = batch.seen_RM
    position = batch.position_RT
    after = np.take_along_axis(position, batch.target_RM, 1)[seen]
    before = np.take_along_axis(position, batch.pred_RM, 1)[seen]
    assert (after == before + 1).all()


def test_tokens_without_weight_are_no_targets():
    tree = chain_tree([1, 2], [([3, 4], [5]), ([8], [])])
    weights = sft_weights(tree)
    weights.n_G[1] = 0.0
    batch, stats = pack_trees([(tree, weights)], 10)
    assert stats.targets == 1 and batch.target_RM[0, 0] == 5


def test_what_was_not_understood_is_read_and_not_imitated():
    tree = chain_tree([1, 2], [([3, 4], [5, 6]), ([7], [8])])
    tree.nodes[1].valid = False
    item = (tree, sft_weights(tree, context=0.5))
    batch, _ = pack_trees([item], 10, row_targets=9)
    assert list(batch.tokens_RT[0, :7]) == [1, 2, 3, 4, 5, 6, 7]
    imitated = {int(t): float(w) for t, w in zip(batch.target_RM[0], batch.nll_RM[0], strict=True)}
    assert {t: w for t, w in imitated.items() if w} == {1: 0.5, 4: 0.5, 5: 0.5, 6: 1.0}
    assert likelihood_normaliser([item]) == 2.5


def test_a_node_without_tokens_is_passed_over():
    tree = chain_tree([1, 2], [([3], [4]), ([], []), ([5], [])])
    tree.nodes += [Node(id=4, parent=2, step=3, response_ids=[6])]
    tree.nodes += [Node(id=5, parent=1, step=2), Node(id=6, parent=5, step=3, response_ids=[7])]
    batch, _ = pack_trees([(tree, sft_weights(tree))], 10)
    assert list(batch.tokens_RT[0, :7]) == [1, 2, 3, 4, 5, 6, 7]
    assert list(batch.pred_RM[0, :4]) == [1, 3, 3, 3]
    assert list(batch.position_RT[0, :7]) == [0, 1, 2, 3, 4, 4, 4]


def test_nothing_to_pack_is_one_empty_micro_batch():
    batch, stats = pack_trees([], 32, rows_multiple=2)
    assert batch.tokens_RT.shape == (2, 32) and stats.rows == 0
    assert len(micro_batches(batch, 2)) == 1
    with pytest.raises(ValueError):
        micro_batches(batch, 3)


def test_wrong_number_of_logprobs_is_refused():
    tree = random_tree(0)
    tree.nodes[1].logprobs = tree.nodes[1].logprobs + [0.0]
    with pytest.raises(ValueError, match="log-probs"):
        pack_trees([weighed(tree)], 512)
