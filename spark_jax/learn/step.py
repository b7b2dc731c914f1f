"""The jitted pieces of an optimiser step: score, accumulate gradients, apply.

    steps = make_steps(config, loss, optimizer, ...)  # learn/optimisers.py
    opt_state = steps.init(params)
    sums = steps.zero(params)
    for batch in micro_batches:                      # one shape, one compilation
        sums = steps.gradient(params, sums, batch, z)
    params, opt_state, metrics = steps.apply(params, opt_state, sums, learning_rate)

One code for the warm-up and for RL: only the loss differs. The vocabulary projection runs at the
gathered predecessors of the targets, a chunk of targets at a time, rematerialised: no [R, T, V].
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spark_jax.learn.loss import Loss
from spark_jax.learn.pack import PackedBatch
from spark_jax.models import transformer
from spark_jax.models.config import ModelConfig
from spark_jax.models.sharding import ROWS, param_shardings, row_sharding
from spark_jax.ops.tree_attention import DEFAULT_BLOCK, ROW_AXES, Backend, make_attend

Params = Any
CHUNK_LOGITS = 2**26  # most logits of one chunk on one device: 256 MiB in float32
CHUNK_TARGETS = 256  # most targets of a row in one chunk: chunks of padding are skipped


class Sums(NamedTuple):
    """Accumulated over the micro-batches of an optimiser step. Donated, so use each one once."""

    grads: Params  # like the params, float32 or wider
    metrics: dict[str, jax.Array]


class WithMaster(NamedTuple):
    """Optimiser state of parameters narrower than float32. An update of 1e-6 is less than half the
    spacing of bfloat16 at 0.02: added to the parameters themselves it would be rounded away."""

    inner: Any  # the optimiser's own state; with float32 parameters this alone is the state
    master: Params  # float32: what updates are added to, and the parameters are rounded from


class Steps(NamedTuple):
    """Jitted functions; see the module docstring. `z` and `learning_rate` are traced numbers."""

    init: Callable[[Params], Any]  # params -> opt_state, sharded as the params
    shapes: Callable[[Params], Any]  # of that opt_state, from params or their shapes: no memory
    zero: Callable[[Params], Sums]
    score: Callable[[Params, PackedBatch], tuple[jax.Array, jax.Array]]  # (logp_RM, entropy_RM)
    gradient: Callable[[Params, Sums, PackedBatch, float], Sums]  # donates the sums
    apply: Callable[[Params, Any, Sums, float], tuple[Params, Any, dict]]  # keeps only the sums


def _chunk_size(targets: int, rows: int, vocab_size: int) -> int:
    """Targets of a row that one chunk takes, a power of two."""
    wanted = min(max(CHUNK_LOGITS // (rows * vocab_size), 8), CHUNK_TARGETS, targets)
    return 1 << (wanted.bit_length() - 1)


def token_logps(
    params: Params,
    batch: PackedBatch,
    *,
    config: ModelConfig,
    temperature: float = 1.0,
    mesh: Mesh | None = None,
    remat: bool = False,
    backend: Backend = "blockwise",
    block: int = DEFAULT_BLOCK,
    entropy_gradient: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target under softmax(logits / temperature), and the entropy of that
    distribution in nats, both [R, M], float32 or wider; 0 for padding.

    `entropy_gradient` is needed only by losses that use the entropy: it costs time.
    """
    rows, row_tokens = batch.tokens_RT.shape
    attend = make_attend(batch.end_RT, mesh, backend, block)
    hidden_ND, _ = transformer.forward(
        params,
        config,
        batch.tokens_RT.reshape(-1),
        batch.position_RT.reshape(-1),
        attend,
        remat=remat,
    )
    hidden_RTD = hidden_ND.reshape(rows, row_tokens, -1)
    # A predecessor that several targets share (a fork) is gathered once for each of them.
    hidden_RMD = jnp.take_along_axis(hidden_RTD, batch.pred_RM[..., None], axis=1)
    label_RM = jnp.take_along_axis(batch.tokens_RT, batch.target_RM, axis=1)

    measured = functools.partial(
        _in_chunks, config=config, temperature=temperature, entropy_gradient=entropy_gradient
    )
    if mesh is not None:
        # Each device has its own rows. By hand: XLA would gather the table, and reduce its
        # gradient, once for every chunk.
        measured = jax.shard_map(
            measured,
            mesh=mesh,
            in_specs=(PartitionSpec(), ROWS, ROWS, ROWS),
            out_specs=ROWS,
            axis_names=set(ROW_AXES),
            check_vma=False,
        )
    head = {name: params[name] for name in ("embed" if config.tied else "unembed",)}
    return measured(head, hidden_RMD, label_RM, batch.seen_RM)


def _in_chunks(
    head: Params,
    hidden_RMD: jax.Array,
    label_RM: jax.Array,
    seen_RM: jax.Array,
    *,
    config: ModelConfig,
    temperature: float,
    entropy_gradient: bool,
) -> tuple[jax.Array, jax.Array]:
    """`token_logps` of targets, by the hidden states that they are predicted from. `head`: the
    parameters that `unembed` reads."""
    rows, targets = label_RM.shape
    chunk = _chunk_size(targets, rows, config.vocab_size)
    count = -(-targets // chunk)

    def chunks(x, fill=0):
        padding = [(0, 0), (0, count * chunk - targets)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, padding, constant_values=fill)
        return x.reshape(rows, count, chunk, *x.shape[2:]).swapaxes(0, 1)

    def measure(hidden_RmD, label_Rm):
        # Flat: of arrays that begin with one row XLA's CPU backend uses one core.
        flat = hidden_RmD.reshape(rows * chunk, -1)
        logits = transformer.unembed(head, config, flat) / temperature
        lse = jax.nn.logsumexp(logits, axis=-1)
        # A masked sum rather than a gather: it stays local when the vocabulary is sharded.
        at_label = jnp.arange(logits.shape[-1]) == label_Rm.reshape(-1, 1)
        logp = jnp.where(at_label, logits, 0.0).sum(axis=-1) - lse
        source = logits if entropy_gradient else jax.lax.stop_gradient(logits)
        base = lse if entropy_gradient else jax.lax.stop_gradient(lse)
        entropy = base - (jnp.exp(source - base[:, None]) * source).sum(axis=-1)
        return logp.reshape(rows, chunk), entropy.reshape(rows, chunk)

    @jax.checkpoint
    def one_chunk(hidden_RmD, label_Rm, seen_Rm):
        shapes = jax.eval_shape(measure, hidden_RmD, label_Rm)
        nothing = lambda *_: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)  # noqa: E731
        # Rows are filled from the front: whole chunks of padding are common, and skipped.
        logp, entropy = jax.lax.cond(jnp.any(seen_Rm), measure, nothing, hidden_RmD, label_Rm)
        return jnp.where(seen_Rm, logp, 0.0), jnp.where(seen_Rm, entropy, 0.0)

    _, (logp, entropy) = jax.lax.scan(
        lambda carry, xs: (carry, one_chunk(*xs)),
        None,
        (chunks(hidden_RMD), chunks(label_RM), chunks(seen_RM)),
    )

    def rows_first(x):
        return x.swapaxes(0, 1).reshape(rows, count * chunk)[:, :targets]

    return rows_first(logp), rows_first(entropy)


def state_shardings(optimizer: optax.GradientTransformation, params: Params, mesh: Mesh) -> Any:
    """Tree of NamedSharding for the optimiser state of `params` (arrays or shapes): what is kept
    for a parameter lies as that parameter does, the rest is on every device."""
    shapes = jax.eval_shape(functools.partial(_init, optimizer), params)
    whole = NamedSharding(mesh, PartitionSpec())
    wanted = dict(jax.tree_util.tree_leaves_with_path(param_shardings(params, mesh)))
    shape_of = {path: x.shape for path, x in jax.tree_util.tree_leaves_with_path(params)}

    def one(path, x):
        # An optimiser may keep moments of some parameters only: their paths end as those do.
        ends = (path[i:] for i in range(len(path)))
        name = next((end for end in ends if shape_of.get(end) == x.shape), None)
        return wanted.get(name, whole)

    return jax.tree_util.tree_map_with_path(one, shapes)


def _init(optimizer: optax.GradientTransformation, params: Params) -> Any:
    wide = _wide(params)
    state = optimizer.init(wide)
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype, params, wide)
    return state if all(jax.tree.leaves(same)) else WithMaster(state, wide)


def _wide(params: Params) -> Params:
    """Params in float32 or wider."""
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), params)


def put_batch(batch: PackedBatch, mesh: Mesh | None = None) -> PackedBatch:
    """The batch on the device, or its rows spread over the mesh's data and fsdp axes."""
    if mesh is None:
        return PackedBatch(*(jnp.asarray(x) for x in batch))
    return PackedBatch(*(jax.device_put(x, row_sharding(mesh)) for x in batch))


def make_steps(
    config: ModelConfig,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    temperature: float = 1.0,
    mesh: Mesh | None = None,
    remat: bool = False,
    backend: Backend = "blockwise",
    block: int = DEFAULT_BLOCK,
    entropy_gradient: bool = False,
) -> Steps:
    """Builds the jitted functions of `Steps`.

    With a mesh, params must lie as `models.sharding.param_shardings` says, the rows of a
    micro-batch must divide by data * fsdp, and batches come from `put_batch(batch, mesh)`.
    `z` is the sum of n over the whole optimiser step: all trees, rows, micro-batches, devices.
    """
    options = dict(
        config=config, temperature=temperature, mesh=mesh, remat=remat, backend=backend, block=block
    )

    def place_params(tree):
        if mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, param_shardings(tree, mesh))

    def init(params):
        state = _init(optimizer, params)
        if mesh is None:
            return state
        return jax.lax.with_sharding_constraint(state, state_shardings(optimizer, params, mesh))

    def shapes(params):
        state = jax.eval_shape(functools.partial(_init, optimizer), params)
        if mesh is None:
            here = jax.tree.leaves(params)[0].sharding
            places = jax.tree.map(lambda _: here, state)
        else:
            places = state_shardings(optimizer, params, mesh)
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, places
        )

    def empty_metrics(params, rows, targets, dtype):
        number = jax.ShapeDtypeStruct((rows, targets), dtype)
        index = jax.ShapeDtypeStruct((rows, targets), jnp.int32)
        batch = PackedBatch(index, index, index, index, index, *([number] * 6))
        return jax.eval_shape(loss, number, number, batch)[1]

    def zero(params):
        grads = place_params(jax.tree.map(jnp.zeros_like, _wide(params)))
        dtype = jnp.result_type(*jax.tree.leaves(grads))
        names = empty_metrics(params, 1, 1, dtype)
        return Sums(grads, {name: jnp.zeros((), dtype) for name in ("loss", *names)})

    def score(params, batch):
        return token_logps(params, batch, **options)

    def gradient(params, sums, batch, z):
        def objective(params):
            logp_RM, entropy_RM = token_logps(
                params, batch, entropy_gradient=entropy_gradient, **options
            )
            total, metrics = loss(logp_RM, entropy_RM, batch)
            return total / z, {name: value / z for name, value in metrics.items()}

        (value, metrics), grads = jax.value_and_grad(objective, has_aux=True)(params)
        metrics = {"loss": value, **metrics}
        return Sums(
            jax.tree.map(lambda a, g: a + g.astype(a.dtype), sums.grads, place_params(grads)),
            {name: old + metrics[name].astype(old.dtype) for name, old in sums.metrics.items()},
        )

    def apply(params, opt_state, sums, learning_rate):
        norm = optax.tree.norm(sums.grads)
        mastered = isinstance(opt_state, WithMaster)
        state, wide = opt_state if mastered else (opt_state, params)
        updates, new_state = optimizer.update(sums.grads, state, wide)
        new_wide = jax.tree.map(lambda w, u: (w - learning_rate * u).astype(w.dtype), wide, updates)
        new_params = jax.tree.map(lambda p, w: w.astype(p.dtype), params, new_wide)
        if mastered:
            new_state = WithMaster(new_state, place_params(new_wide))
        # A step whose gradient overflowed is left out rather than spread over all parameters.
        finite = jnp.isfinite(norm)
        new_params, new_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (place_params(new_params), new_state),
            (params, opt_state),
        )
        skipped = 1.0 - finite.astype(norm.dtype)
        return new_params, new_state, {**sums.metrics, "grad_norm": norm, "skipped": skipped}

    return Steps(
        init=jax.jit(init),
        shapes=shapes,
        zero=jax.jit(zero),
        score=jax.jit(score),
        gradient=jax.jit(gradient, donate_argnums=1),
        apply=jax.jit(apply, donate_argnums=(0, 1)),
    )


def optimiser_step(
    steps: Steps,
    params: Params,
    opt_state: Any,
    batches: Sequence[PackedBatch],
    z: float,
    learning_rate: float,
) -> tuple[Params, Any, dict[str, jax.Array]]:
    """One update from all micro-batches of an optimiser step. `params` and `opt_state` are donated.

    Metrics are means over token copies: `loss`, those of the loss function, `grad_norm` (before
    the clip) and `skipped` (1 if the gradient was not finite and nothing was changed).
    """
    sums = steps.zero(params)
    for batch in batches:
        sums = steps.gradient(params, sums, batch, z)
    return steps.apply(params, opt_state, sums, learning_rate)


def mean_metrics(of_steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Metrics of several optimiser steps (`optimiser_step`, on the host) as one: the share of
    steps that were skipped, and of the other metrics the mean over those that were not. If all
    were, they are what they are: not finite, so that the run ends there."""
    kept = [m for m in of_steps if not m["skipped"]] or of_steps
    mean = {name: float(np.mean([m[name] for m in kept])) for name in of_steps[0]}
    return mean | {"skipped": float(np.mean([m["skipped"] for m in of_steps]))}
