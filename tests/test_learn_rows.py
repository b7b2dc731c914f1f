"""Trees of rebuilt prompts against the plainest learner: every leaf has a row of its own for every
step, prompt and response, and the loss is written per copy."""

import dataclasses
import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_learn_step import (  # noqa: F401
    BETA,
    PENALTY,
    TEMPERATURE,
    dtype,
    linear_logps,
    random_params,
    small_config,
)
from trees import random_tree

from spark_jax.learn import advantage
from spark_jax.learn.credit import (
    likelihood_normaliser,
    normaliser,
    segment_weights,
    sft_weights,
)
from spark_jax.learn.loss import policy_loss, sft_loss
from spark_jax.learn.optimisers import adamw
from spark_jax.learn.pack import chain_tree, linear_tokens, micro_batches, node_sums, pack_trees
from spark_jax.learn.preference import path_sums, path_weights
from spark_jax.learn.rows import to_pack
from spark_jax.learn.step import make_steps, put_batch

ROWS, LENGTH = 160, 48  # of the table of rows: one shape, one compilation
CLIP = (0.2, 0.3, 3.0)
CONTEXT = 0.3


def rebuilt_tree(seed, same_step=False, **shape):
    """A random tree in which the context after a step is a whole prompt: a head that all have,
    then some of the last segments; now and then the very prompt of another step."""
    tree = random_tree(seed, same_step=same_step, **shape)
    rng = random.Random(seed)
    head = tree.nodes[0].context_ids
    prompts = [head]
    for node in tree.nodes[1:]:
        if not node.context_ids:  # a leaf, or a reasoning whose action is another node
            continue
        if rng.random() < 0.15:
            node.context_ids = list(rng.choice(prompts))
            continue
        shown = tree.path(node.id)[1:][-rng.randint(1, 2) :]
        window = [t for i in shown for t in tree.nodes[i].response_ids[:3]]
        node.context_ids = [*head[: rng.randint(3, len(head))], *window, rng.randrange(64)]
        prompts.append(node.context_ids)
    return dataclasses.replace(tree, rebuilt=True)


def rows_of_leaf(tree, leaf):
    """(tokens, owner) of each step row on the path to a leaf: owner -1 for a prompt token."""
    rows = []
    for i in tree.path(leaf):
        node = tree.nodes[i]
        if i:
            rows[-1] += [(t, i) for t in node.response_ids]
        if node.context_ids and i != leaf:
            rows.append([(t, -1) for t in node.context_ids])
    return [(np.array([t for t, _ in row]), np.array([o for _, o in row])) for row in rows]


def step_tables(trees):
    """All step rows of all leaves: tokens [R, T], owner node (-1: prompt, -2: padding), and for
    each row its (tree, row of the tree's leaves)."""
    tokens = np.zeros((ROWS, LENGTH), np.int32)
    owner = np.full((ROWS, LENGTH), -2)
    whose = []
    for k, tree in enumerate(trees):
        for row, leaf in enumerate(tree.leaf_ids()):
            for ids, nodes in rows_of_leaf(tree, leaf):
                tokens[len(whose), : len(ids)], owner[len(whose), : len(ids)] = ids, nodes
                whose.append((k, row))
    return tokens, owner, whose


def play(config, params, trees, seed):
    """Old log-probs whose ratios lie on all sides of the clip."""
    rng = np.random.default_rng(seed)
    tokens, owner, whose = step_tables(trees)
    logp = np.asarray(linear_logps(config, params, tokens)[0], np.float64)
    for r, (k, _) in enumerate(whose):
        for i in set(owner[r]) - {-1, -2}:
            at = np.flatnonzero(owner[r] == i)
            ratio = rng.choice([0.5, 0.79, 0.85, 1.0, 1.1, 1.28, 1.4, 3.5], size=at.size)
            trees[k].nodes[i].logprobs = list(logp[r, at - 1] - np.log(ratio))


def policy_and_context_loss(*args):
    low, high, dual = CLIP
    policy, metrics = policy_loss(*args, clip_low=low, clip_high=high, dual_clip=dual, kl_coef=BETA)
    return policy + sft_loss(*args)[0], metrics


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.value_and_grad, argnums=1)
def plain_loss(config, params, reference, tables):
    """Sum over all tokens of all rows of all leaves, copy by copy."""
    low, high, dual = CLIP
    tokens, old, a, weight, nll = tables
    logp, _ = linear_logps(config, params, tokens)
    r = jnp.exp(jnp.where(weight > 0, logp - old, 0.0))
    objective = jnp.minimum(r * a, jnp.clip(r, 1 - low, 1 + high) * a)
    objective = jnp.where(a < 0, jnp.maximum(objective, dual * a), objective)
    d = linear_logps(config, reference, tokens)[0] - logp
    objective -= BETA * (jnp.exp(d) - d - 1)
    return -(weight * objective + nll * logp).sum()


def plain_tables(trees, advantages, leaf_weights, per_leaf, kind):
    tokens, owner, whose = step_tables(trees)
    old, a, weight, nll = np.zeros((4, ROWS, LENGTH))
    for r, (k, row) in enumerate(whose):
        tree, leaf = trees[k], trees[k].leaf_ids()[row]
        w = leaf_weights[k][row]
        if per_leaf:
            w /= sum(len(tree.nodes[i].response_ids) for i in tree.path(leaf))
        for i in set(owner[r]) - {-1, -2}:
            mine = owner[r] == i
            old[r, mine] = tree.nodes[i].logprobs
            a[r, mine] = advantages[k][row, i] - PENALTY * (not tree.nodes[i].valid)
            weight[r, mine] = w
        nll[r, owner[r] == -1] = CONTEXT * w  # its first token is cut off below
    return tokens, *(x[:, 1:].astype(kind) for x in (old, a, weight, nll))


CASES = {
    # name: (advantage, leaf weight, per leaf, row tokens, tree shape)
    "several trees in a row": ("leaf_group", "uniform", False, 512, dict(branch=3)),
    "split, siblings, path weights": ("sibling", "path", False, 64, dict(branch=4, fork=0.7)),
    "same step, mean per leaf": ("mix", "path", True, 384, dict(depth=7, same_step=True)),
}


# In float32 one case: what differs between the cases shows in float64.
TYPES = [*((case, "float64") for case in CASES), (next(iter(CASES)), "float32")]


@pytest.mark.parametrize("case,dtype", TYPES, indirect=["dtype"])
def test_packed_rows_equal_the_rows_of_all_leaves(case, dtype):  # noqa: F811
    formula, kind, per_leaf, row_tokens, shape = CASES[case]
    config = small_config(dtype)
    params, reference = random_params(config, 0), random_params(config, 1)
    trees = [rebuilt_tree(s, leaves=8, **shape) for s in (1, 2, 5)]
    play(config, params, trees, 0)
    weights = [advantage.LEAF_WEIGHTS[kind](tree) for tree in trees]
    advantages = [
        advantage.ADVANTAGES[formula](tree, w) for tree, w in zip(trees, weights, strict=True)
    ]
    items = []
    for tree, w, a in zip(trees, weights, advantages, strict=True):
        credit = segment_weights(tree, a, w, PENALTY, per_leaf, CONTEXT)
        items.append(to_pack(tree, credit)[:2])
    batch, stats = pack_trees(items, row_tokens, row_tokens, rows_multiple=2, dtype=dtype)
    assert stats.packed_tokens < 0.6 * sum(linear_tokens(tree) for tree in trees)
    assert (stats.pieces > 3) == case.startswith("split")
    steps = make_steps(config, policy_and_context_loss, adamw(), temperature=TEMPERATURE, block=32)
    batches = [put_batch(b) for b in micro_batches(batch, 2)]
    batches = [b._replace(ref_logp_RM=steps.score(reference, b)[0]) for b in batches]
    z, sums = normaliser(items), steps.zero(params)
    for b in batches:
        sums = steps.gradient(params, sums, b, z)

    tables = plain_tables(trees, advantages, weights, per_leaf, dtype)
    assert z == pytest.approx(tables[3].sum(dtype=np.float64), rel=1e-6)
    value, grads = plain_loss(config, params, reference, tables)
    value, grads = jax.tree.map(lambda x: x / z, (value, grads))
    tolerance = {"float64": 1e-9, "float32": 2e-5}[dtype]
    assert float(sums.metrics["loss"]) == pytest.approx(float(value), rel=tolerance)
    for (path, ours), plain in zip(
        jax.tree_util.tree_leaves_with_path(sums.grads), jax.tree.leaves(grads), strict=True
    ):
        error = np.linalg.norm(ours - plain) / np.linalg.norm(plain)
        assert error < tolerance, (jax.tree_util.keystr(path), error)


def test_each_shared_token_is_laid_out_once():
    """By hand: a head of three tokens, two prompts that differ, one of them had twice."""
    turns = [([50], [1, 2, 3, 7]), ([51], [1, 2, 3, 8, 9]), ([52], [1, 2, 3, 7]), ([53], [])]
    tree = chain_tree([1, 2, 3], turns, rebuilt=True)
    rows, weights, place = to_pack(tree, sft_weights(tree, context=0.5))
    assert [n.context_ids for n in rows.nodes] == [[1, 2, 3], [], [7], [], [], [8, 9], []]
    assert [n.response_ids for n in rows.nodes] == [[], [50], [], [51], [53], [], [52]]
    assert [n.parent for n in rows.nodes] == [-1, 0, 0, 2, 2, 0, 5]
    assert [n.id for n in rows.nodes] == list(range(7)) and not rows.rebuilt
    assert list(place) == [0, 1, 3, 6, 4]
    assert list(weights.nll_G) == [0, 1, 0, 1, 1, 0, 1]
    # Four rows have the head, two the 7.
    assert list(weights.context_nll_G) == [2, 0, 1, 0, 0, 0.5, 0]
    assert linear_tokens(tree) == 4 + 5 + 6 + 5
    assert likelihood_normaliser([(rows, weights)]) == 4 + 0.5 * (2 + 3 + 4 + 3)
    batch, stats = pack_trees([(rows, weights)], 16, 16)
    assert stats.packed_tokens == 3 + 1 + 2 + 4
    assert list(batch.tokens_RT[0, :10]) == [1, 2, 3, 50, 7, 51, 53, 8, 9, 52]
    assert list(batch.position_RT[0, :10]) == [0, 1, 2, 3, 3, 4, 4, 3, 4, 5]


def test_a_growing_dialogue_stays_as_it_is():
    tree = random_tree(3)
    weights = sft_weights(tree)
    rows = to_pack(tree, weights)
    assert rows.tree is tree and rows.weights is weights
    assert list(rows.place) == list(range(len(tree.nodes)))


def test_sums_over_whole_paths_find_their_steps():
    """As ETO adds them up: the tokens themselves, through the packing and back to the path."""
    tree = rebuilt_tree(4, leaves=6)
    weights = path_weights(tree, np.ones(len(tree.leaf_ids())))
    rows, packed, place = to_pack(tree, weights)
    batch, _ = pack_trees([(rows, packed)], 64, 64)
    values = np.take_along_axis(batch.tokens_RT, batch.target_RM, 1) * 1.0
    (by_row,) = node_sums([(rows, packed)], values, 64, 64)
    got = path_sums(tree, by_row[place])
    expected = [
        sum(sum(tree.nodes[i].response_ids) for i in tree.path(leaf)) for leaf in tree.leaf_ids()
    ]
    np.testing.assert_array_equal(got, expected)


def test_warm_up_rows_have_their_likelihood():
    """float32: the loss of a packed chain is that of its rows, each alone."""
    config = small_config("float32")
    params = random_params(config, 0)
    tree = chain_tree(
        [1, 2, 3], [([5, 6], [1, 2, 3, 7]), ([8], [1, 2, 3, 9, 4]), ([7, 7], [])], rebuilt=True
    )
    rows, weights, _ = to_pack(tree, sft_weights(tree))
    steps = make_steps(config, sft_loss, adamw(), temperature=TEMPERATURE)
    batch, _ = pack_trees([(rows, weights)], 32)
    sums = steps.gradient(
        params, steps.zero(params), put_batch(batch), normaliser([(rows, weights)])
    )
    tokens, owner, _ = step_tables([tree])
    logp = np.asarray(linear_logps(config, params, tokens)[0])
    expected = -logp[owner[:, 1:] >= 0].mean()
    assert float(sums.metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)
