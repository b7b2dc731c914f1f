"""Packed trees against the plainest possible learner: every leaf a row of its own, causal
attention, all logits, the loss written per copy."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import random_tree

from spark_jax.learn import advantage
from spark_jax.learn.credit import normaliser, segment_weights, sft_weights
from spark_jax.learn.loss import policy_loss, sft_loss
from spark_jax.learn.optimisers import adamw
from spark_jax.learn.pack import chain_tree, micro_batches, pack_trees
from spark_jax.learn.step import make_steps, mean_metrics, optimiser_step, put_batch
from spark_jax.models import transformer
from spark_jax.models.config import ModelConfig

PENALTY = 0.1
BETA = 0.05
TEMPERATURE = 0.8


def small_config(dtype):
    return ModelConfig(
        vocab_size=64,
        layers=2,
        width=32,
        heads=4,
        kv_heads=2,
        head_dim=8,
        feed_forward=48,
        dtype=dtype,
        param_dtype=dtype,
    )


class WideNorm(nn.Module):
    """The model's norm without its cast to float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), x.dtype)
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + self.config.norm_eps) * scale


def wide_rotate(x, cos, sin):
    low, high = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


@pytest.fixture(params=["float64", "float32"])
def dtype(request, monkeypatch):
    """float64 also in the few places where the model computes in float32 on purpose."""
    if request.param == "float64":
        monkeypatch.setattr(transformer, "RMSNorm", WideNorm)
        monkeypatch.setattr(transformer, "rotate", wide_rotate)
        monkeypatch.setattr(
            transformer, "unembed", lambda params, _, x: x @ params["embed"]["embedding"].T
        )
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def random_params(config, seed):
    """Params large enough that attention, clip and KL all matter."""
    shapes = transformer.param_shapes(config)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: jnp.asarray(
            rng.normal(size=s.shape) * (0.3 if len(s.shape) > 1 else 0.1) + (len(s.shape) == 1),
            s.dtype,
        ),
        shapes,
    )


ROWS, LENGTH = 28, 128  # of the table of leaves: one shape, one compilation


def leaf_rows(trees):
    """Every leaf of every tree as a padded row: tokens, which of them were sampled, and the
    (tree, node) that each one belongs to."""
    tokens = np.zeros((ROWS, LENGTH), np.int32)
    sampled = np.zeros((ROWS, LENGTH), bool)
    owner = np.full((ROWS, LENGTH, 2), -1)
    row = 0
    for k, tree in enumerate(trees):
        for leaf in tree.leaf_ids():
            at = 0
            for i in tree.path(leaf):
                node = tree.nodes[i]
                for ids, is_response in ((node.response_ids, True), (node.context_ids, False)):
                    span = slice(at, at + len(ids))
                    tokens[row, span], sampled[row, span] = ids, is_response
                    owner[row, span] = k, i
                    at += len(ids)
            row += 1
    return tokens, sampled, owner


def causal_attend(rows):
    def attend(q_NHC, k_NKC, v_NKC, kv):
        repeat = q_NHC.shape[1] // k_NKC.shape[1]
        q, k, v = (
            jnp.repeat(x, r, axis=1).reshape(rows, -1, *q_NHC.shape[1:])
            for x, r in ((q_NHC, 1), (k_NKC, repeat), (v_NKC, repeat))
        )
        scores = jnp.einsum("bthc,bshc->bhts", q, k) / q.shape[-1] ** 0.5
        causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
        return jnp.einsum("bhts,bshc->bthc", weights, v).reshape(q_NHC.shape), kv

    return attend


@functools.partial(jax.jit, static_argnums=0)
def linear_logps(config, params, tokens_LT):
    """log p of tokens[:, 1:] and the entropy at tokens[:, :-1]."""
    rows, length = tokens_LT.shape
    position = jnp.tile(jnp.arange(length), rows)
    hidden, _ = transformer.forward(
        params, config, tokens_LT.reshape(-1), position, causal_attend(rows)
    )
    logits = transformer.unembed(params, config, hidden).reshape(rows, length, -1) / TEMPERATURE
    logp = jax.nn.log_softmax(logits[:, :-1], axis=-1)
    entropy = -(jnp.exp(logp) * logp).sum(axis=-1)
    return jnp.take_along_axis(logp, tokens_LT[:, 1:, None], axis=-1)[..., 0], entropy


def play(config, params, trees, seed):
    """Fills in old log-probs so that ratios lie on all sides of the clip, 1e-3 and more from it."""
    rng = np.random.default_rng(seed)
    tokens, sampled, owner = leaf_rows(trees)
    logp = np.asarray(linear_logps(config, params, tokens)[0], np.float64)
    for k, tree in enumerate(trees):
        for node in tree.nodes[1:]:
            mine = (owner == (k, node.id)).all(axis=-1) & sampled
            row = np.flatnonzero(mine.any(axis=1))[0]
            at = np.flatnonzero(mine[row])
            ratio = rng.choice([0.5, 0.79, 0.85, 1.0, 1.1, 1.28, 1.4, 3.5], size=at.size)
            ratio *= rng.uniform(0.995, 1.005, size=at.size)
            node.logprobs = list(logp[row, at - 1] - np.log(ratio))


def leaf_tables(trees, weigh, per_leaf, dtype):
    """Tokens, and old log-prob, advantage and weight of each token after the first, a row a leaf.
    The advantages are computed here once more, from the formula."""
    tokens, sampled, owner = leaf_rows(trees)
    old, a, weight = np.zeros((3, ROWS, LENGTH))
    row = 0
    for tree in trees:
        rewards = np.array([tree.nodes[i].reward for i in tree.leaf_ids()])
        w = weigh(tree)
        base = np.zeros_like(rewards)
        if rewards.std() > 0:
            mean = (w * rewards).sum() / w.sum()
            freedom = w.sum() - (w * w).sum() / w.sum()
            base = (rewards - mean) / (np.sqrt((w * (rewards - mean) ** 2).sum() / freedom) + 1e-6)
        for i, leaf in enumerate(tree.leaf_ids()):
            mine = sampled[row]
            old[row, mine] = np.concatenate([tree.nodes[j].logprobs for j in tree.path(leaf)])
            invalid = np.array([not tree.nodes[j].valid for j in owner[row, mine, 1]])
            a[row, mine] = base[i] - PENALTY * invalid
            weight[row, mine] = w[i] / (mine.sum() if per_leaf else 1)
            row += 1
    return tokens, *(x[:, 1:].astype(dtype) for x in (old, a, weight))


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
@functools.partial(jax.value_and_grad, argnums=1)
def linear_loss(config, params, reference, clip, entropy_coef, tables):
    """Sum over the leaves of all trees, copy by copy."""
    low, high, dual = clip
    tokens, old, a, weight = tables
    logp, entropy = linear_logps(config, params, tokens)
    r = jnp.exp(jnp.where(weight > 0, logp - old, 0.0))
    objective = jnp.minimum(r * a, jnp.clip(r, 1 - low, 1 + high) * a)
    if dual:
        objective = jnp.where(a < 0, jnp.maximum(objective, dual * a), objective)
    d = linear_logps(config, reference, tokens)[0] - logp
    objective += entropy_coef * entropy - BETA * (jnp.exp(d) - d - 1)
    return -(weight * objective).sum()


CASES = {
    # name: (leaf weight, per leaf, row tokens, clip low/high/dual, entropy, tree shape)
    "several trees in a row": ("uniform", False, 384, (0.2, 0.2, 0.0), 0.0, dict(branch=3)),
    "split, path weights": ("path", False, 96, (0.2, 0.3, 3.0), 0.01, dict(branch=4, fork=0.7)),
    "deep, mean per leaf": ("path", True, 128, (0.2, 0.2, 0.0), 0.0, dict(depth=8, same_step=True)),
}


# In float32 one case: what differs between the cases shows in float64.
TYPES = [*((case, "float64") for case in CASES), (next(iter(CASES)), "float32")]


@pytest.mark.parametrize("case,dtype", TYPES, indirect=["dtype"])
def test_packed_trees_equal_their_leaves(case, dtype):
    kind, per_leaf, row_tokens, clip, entropy_coef, shape = CASES[case]
    config = small_config(dtype)
    params, reference = random_params(config, 0), random_params(config, 1)
    trees = [random_tree(s, leaves=9, **shape) for s in (1, 2, 5)]
    play(config, params, trees, 0)
    weigh = advantage.LEAF_WEIGHTS[kind]
    items = []
    for tree in trees:
        w = weigh(tree)
        items.append(
            (tree, segment_weights(tree, advantage.leaf_group(tree, w), w, PENALTY, per_leaf))
        )
    batch, stats = pack_trees(items, row_tokens, rows_multiple=2, dtype=dtype)
    if case.startswith("split"):
        assert stats.pieces > 3
    if case.startswith("several"):
        assert stats.pieces == 3 and stats.rows < 3
    batches = [put_batch(b) for b in micro_batches(batch, 2)]

    loss = functools.partial(
        policy_loss,
        clip_low=clip[0],
        clip_high=clip[1],
        dual_clip=clip[2],
        kl_coef=BETA,
        entropy_coef=entropy_coef,
    )
    steps = make_steps(
        config,
        loss,
        adamw(),
        temperature=TEMPERATURE,
        remat=case.startswith("deep"),
        block=32,
        entropy_gradient=entropy_coef > 0,
    )
    batches = [b._replace(ref_logp_RM=steps.score(reference, b)[0]) for b in batches]
    z = normaliser(items)
    sums = steps.zero(params)
    for b in batches:
        sums = steps.gradient(params, sums, b, z)
    clipped = float(sums.metrics["clip_fraction"])
    assert 0.1 < clipped < 0.9

    tables = leaf_tables(trees, weigh, per_leaf, dtype)
    assert z == pytest.approx(tables[-1].sum(dtype=np.float64), rel=1e-6)
    value, grads = linear_loss(config, params, reference, clip, entropy_coef, tables)
    value, grads = jax.tree.map(lambda x: x / z, (value, grads))
    tolerance = {"float64": 1e-9, "float32": 1e-5}[dtype]
    assert float(sums.metrics["loss"]) == pytest.approx(float(value), rel=tolerance)
    for (path, ours), plain in zip(
        jax.tree_util.tree_leaves_with_path(sums.grads), jax.tree.leaves(grads), strict=True
    ):
        assert ours.dtype == dtype
        error = np.linalg.norm(ours - plain) / np.linalg.norm(plain)
        assert error < tolerance, (jax.tree_util.keystr(path), error)


def test_score_is_the_log_probability_of_the_path(dtype):
    config = small_config(dtype)
    params = random_params(config, 0)
    tree = random_tree(4)
    for node in tree.nodes:
        node.valid = True  # what was not understood would be no target
    play(config, params, [tree], 0)
    batch, _ = pack_trees([(tree, sft_weights(tree))], 256, dtype=dtype)
    steps = make_steps(config, sft_loss, adamw(), temperature=TEMPERATURE)
    logp, entropy = steps.score(params, put_batch(batch))
    tokens, sampled, owner = leaf_rows([tree])
    plain = [np.asarray(x) for x in linear_logps(config, params, tokens)]
    expected, done = [], set()
    for _, row in sorted((tree.path(leaf), row) for row, leaf in enumerate(tree.leaf_ids())):
        for at in np.flatnonzero(sampled[row]):
            if owner[row, at, 1] not in done:  # depth-first, each node once
                expected.append([x[row, at - 1] for x in plain])
        done.update(owner[row, :, 1])
    expected = np.array(expected)
    seen = batch.n_RM[0] > 0
    tolerance = {"float64": 1e-12, "float32": 1e-5}[dtype]
    np.testing.assert_allclose(logp[0, seen], expected[:, 0], atol=tolerance)
    np.testing.assert_allclose(entropy[0, seen], expected[:, 1], atol=tolerance)
    assert not np.asarray(logp)[batch.n_RM == 0].any()


def sft_items(count=5):
    rng = np.random.default_rng(0)

    def ids(n):
        return [int(x) for x in rng.integers(0, 64, n)]

    chains = [chain_tree(ids(6), [(ids(5), ids(4)), (ids(7), ids(3))]) for _ in range(count)]
    return [(tree, sft_weights(tree)) for tree in chains]


def test_warm_up_learns_by_heart_and_compiles_once():
    config = small_config("float32")
    items = sft_items()
    batch, _ = pack_trees(items, 64, rows_multiple=1)
    batches = [put_batch(b) for b in micro_batches(batch, 1)]
    assert len(batches) > 1
    traces, updates = [], []

    def loss(*args):
        traces.append(1)
        return sft_loss(*args)

    inner = adamw(weight_decay=0.0)

    def update(*args):
        updates.append(1)
        return inner.update(*args)

    steps = make_steps(config, loss, inner._replace(update=update))
    params = transformer.init_params(config, jax.random.key(0))
    state = steps.init(params)
    history = []
    for i in range(60):
        z, rate = normaliser(items) + 1e-3 * i, 1e-2 * (1 - i / 100)
        params, state, metrics = optimiser_step(steps, params, state, batches, z, rate)
        history.append(float(metrics["loss"]))
    assert history[0] == pytest.approx(np.log(64), rel=0.05)
    assert history[-1] < 0.1
    # One trace for the metrics' names and one of the gradient, for all steps and learning rates.
    assert len(traces) == 2 and len(updates) == 1


def test_micro_batches_do_not_change_the_gradient():
    config = small_config("float32")
    params = random_params(config, 0)
    items = sft_items()
    batch, _ = pack_trees(items, 64, rows_multiple=4)
    steps = make_steps(config, sft_loss, adamw())
    sums = []
    for rows in (4, 1):
        total = steps.zero(params)
        for b in micro_batches(batch, rows):
            total = steps.gradient(params, total, put_batch(b), normaliser(items))
        sums.append(total)
    for a, b in zip(jax.tree.leaves(sums[0]), jax.tree.leaves(sums[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_update_is_adamw_with_a_clip():
    config = small_config("float32")
    params = random_params(config, 0)
    before = jax.tree.map(np.array, params)
    steps = make_steps(config, sft_loss, adamw(weight_decay=0.5, max_norm=1.0))
    state = steps.init(params)
    sums = steps.zero(params)
    sums = sums._replace(grads=jax.tree.map(lambda x: x + 3.0, sums.grads))
    params, state, metrics = steps.apply(params, state, sums, 0.01)
    count = sum(x.size for x in jax.tree.leaves(before))
    assert float(metrics["grad_norm"]) == pytest.approx(3.0 * count**0.5, rel=1e-4)
    moment = jax.tree.leaves(state[1].mu)[0]
    np.testing.assert_allclose(moment, 0.1 / count**0.5, rtol=1e-4)  # (1 - b1) * clipped gradient
    matrix, old = params["layers_0"]["q"]["kernel"], before["layers_0"]["q"]["kernel"]
    np.testing.assert_allclose(matrix, old - 0.01 * (1.0 + 0.5 * old), atol=2e-5)
    scale, old = params["final_norm"]["scale"], before["final_norm"]["scale"]
    np.testing.assert_allclose(scale, old - 0.01, atol=2e-5)  # norms do not decay


def after_tiny_updates(dtype, count=1000):
    """Parameters around 0.02, and the optimiser state, after `count` updates of about 1e-6."""
    config = small_config(dtype)
    start = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_params(config, 0))
    params = jax.tree.map(lambda x: (0.02 + 0.001 * x).astype(dtype), start)
    steps = make_steps(config, sft_loss, adamw(weight_decay=0.0))
    state, sums = steps.init(params), steps.zero(params)
    sums = sums._replace(grads=jax.tree.map(lambda x: x + 1.0, sums.grads))
    before = jax.tree.map(np.array, params)
    for _ in range(count):
        params, state, _ = steps.apply(params, state, sums, 1e-6)
    return before, params, state


def test_tiny_updates_move_bfloat16_parameters_as_they_move_float32():
    """Each is a hundredth of the spacing of bfloat16 there."""
    _, wanted, plain = after_tiny_updates("float32")
    before, params, state = after_tiny_updates("bfloat16")
    assert jax.tree.structure(plain) == jax.tree.structure(state.inner), "no copy in float32"
    for old, new, master, x in zip(
        *map(jax.tree.leaves, (before, params, state.master, wanted)), strict=True
    ):
        assert new.dtype == jnp.bfloat16 and master.dtype == jnp.float32
        np.testing.assert_array_equal(new, master.astype(jnp.bfloat16))
        np.testing.assert_allclose(master, old.astype(np.float32) - 1e-3, atol=1e-5)
        np.testing.assert_allclose(new.astype(jnp.float32), x, atol=3e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gradient_that_is_not_finite_changes_nothing(dtype):
    config = small_config(dtype)
    params = random_params(config, 0)
    before = jax.tree.map(np.array, params)
    steps = make_steps(config, sft_loss, adamw())
    state = steps.init(params)
    sums = steps.zero(params)
    sums.grads["final_norm"]["scale"] = sums.grads["final_norm"]["scale"] * jnp.nan
    params, state, metrics = steps.apply(params, state, sums, 0.01)
    assert float(metrics["skipped"]) == 1.0
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)
    if dtype == "bfloat16":
        state, master = state
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), master, before))
    assert int(state[1].count) == 0


def test_skipped_steps_do_not_spoil_the_metrics():
    fine = [
        {"loss": 1.0, "grad_norm": 2.0, "skipped": 0.0},
        {"loss": 3.0, "grad_norm": 4.0, "skipped": 0.0},
    ]
    lost = {"loss": np.nan, "grad_norm": np.inf, "skipped": 1.0}
    assert mean_metrics(fine) == {"loss": 2.0, "grad_norm": 3.0, "skipped": 0.0}
    assert mean_metrics([fine[0], lost, lost, fine[1]]) == {
        "loss": 2.0,
        "grad_norm": 3.0,
        "skipped": 0.5,
    }
    assert not np.isfinite(mean_metrics([lost, lost])["grad_norm"]), "the run ends there"


def test_no_buffer_of_all_logits():
    config = dataclasses.replace(small_config("float32"), vocab_size=50_000)
    params = transformer.param_shapes(config)
    steps = make_steps(config, sft_loss, adamw())
    batch, _ = pack_trees(sft_items(), 4096, rows_multiple=2)
    sums = jax.eval_shape(steps.zero, params)
    compiled = steps.gradient.lower(params, sums, batch, 1.0).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < batch.target_RM.size * config.vocab_size * 4 / 2
