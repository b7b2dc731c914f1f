"""Checkpoints: exact, atomic under kill -9, restored with shardings."""

import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spark_jax.learn.loss import sft_loss
from spark_jax.learn.optimisers import adamw
from spark_jax.learn.step import make_steps
from spark_jax.models.config import nano_config
from spark_jax.models.transformer import init_params
from spark_jax.run.checkpoint import Checkpoints
from spark_jax.types import UserError

ROOT = pathlib.Path(__file__).parents[1]


def values(step):
    params = {
        "embed": jnp.arange(12.0).reshape(4, 3) + step,
        "layers": [{"w": jnp.full((8,), step, jnp.bfloat16)}, {"w": jnp.full((8,), -step * 1.0)}],
    }
    optimiser = optax.adamw(1e-3)
    _, opt_state = optimiser.update(params, optimiser.init(params), params)
    return params, opt_state


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_round_trip_retention_and_reference(tmp_path):
    state = {"phase": "rl", "iteration": 3, "best": 0.25, "lines": [1, 2], "none": None}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(UserError, match="it has none"):
            checkpoints.restore(values(0)[0])
        with pytest.raises(UserError, match="warm-up"):
            checkpoints.restore_reference(values(0)[0])
        checkpoints.save_reference(values(7)[0])
        checkpoints.save_reference(values(8)[0])  # an interrupted warm-up was done again
        for step in (1, 2, 5):
            checkpoints.save(step, *values(step), state)
        assert checkpoints.all_steps() == [2, 5]
        with pytest.raises(ValueError, match="comes after"):
            checkpoints.save(5, *values(5), state)

    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), values(0))
        restored = checkpoints.restore(*like)
        assert (restored.step, restored.state) == (5, state)
        assert_same((restored.params, restored.opt_state), values(5))
        older = checkpoints.restore(values(0)[0], step=2)
        assert older.opt_state is None
        assert_same(older.params, values(2)[0])
        assert_same(checkpoints.restore_reference(values(0)[0]), values(8)[0])
        with pytest.raises(UserError, match="steps 2, 5"):
            checkpoints.restore(values(0)[0], step=3)
        wrong = values(0)[0] | {"embed": jnp.zeros((5, 3))}
        with pytest.raises(
            UserError, match=r"embed has shape \(4, 3\) there and has shape \(5, 3\)"
        ):
            checkpoints.restore(wrong)
        with pytest.raises(UserError, match="other is absent there"):
            checkpoints.restore_reference({"other": jnp.zeros(3)})


def test_the_float32_copy_of_bfloat16_parameters_comes_back(tmp_path):
    config = nano_config(16, param_dtype="bfloat16")
    steps = make_steps(config, sft_loss, adamw())
    params = init_params(config, jax.random.key(0))
    state = steps.init(params)
    for _ in range(3):  # too small for the parameters to move
        sums = steps.zero(params)
        sums = sums._replace(grads=jax.tree.map(lambda x: x + 1.0, sums.grads))
        params, state, _ = steps.apply(params, state, sums, 1e-6)
    assert (state.master["final_norm"]["scale"] != params["final_norm"]["scale"]).all()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, params, state, {})
        fresh = init_params(config, jax.random.key(1))
        restored = checkpoints.restore(fresh, steps.init(fresh))
    assert_same((restored.params, restored.opt_state), (params, state))


def test_reading_a_folder_without_a_run_makes_nothing(tmp_path):
    with Checkpoints(tmp_path / "nowhere", read_only=True) as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(UserError, match="no complete checkpoint"):
            checkpoints.restore(values(0)[0])
    assert not (tmp_path / "nowhere").exists()


def test_what_a_killed_writer_left_goes_when_the_next_one_starts(tmp_path):
    left = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest_step() is None
        assert left.exists(), "a reader must not disturb a writer"
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        assert not left.exists()


def test_restores_to_the_shardings_asked_for(tmp_path):
    mesh = jax.make_mesh(
        (1,), ("fsdp",), devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,)
    )
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    params, opt_state = values(1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, params, opt_state, {})
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), params
        )
        restored = checkpoints.restore(like)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(restored.params))
    assert_same(restored.params, params)


WRITER = """
import sys
sys.path.insert(0, {root!r})
sys.path.insert(0, {tests!r})
from spark_jax.run.checkpoint import Checkpoints
from test_run_checkpoint import values

with Checkpoints({workdir!r}, keep=1) as checkpoints:
    step = checkpoints.latest_step() or 0
    print("ready", step, flush=True)
    while True:
        step += 1
        if step == 1:
            checkpoints.save_reference(values(100)[0])
        checkpoints.save(step, *values(step), {{"step": step}})
        print(step, flush=True)
"""


def test_kill_9_at_any_moment_leaves_the_last_complete_checkpoint(tmp_path):
    """Three writers, each killed at a random moment while it saves without a pause."""
    rng = random.Random(5)
    script = WRITER.format(root=str(ROOT), tests=str(ROOT / "tests"), workdir=str(tmp_path))
    reached = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        first = process.stdout.readline()
        assert first.startswith("ready"), process.stderr.read()
        assert int(first.split()[1]) >= reached, "a restart sees an older checkpoint"
        said = [int(process.stdout.readline())]  # the first one compiles, then it is fast
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate()
        said += [int(line) for line in out.splitlines()]
        reached = max(said)
        with Checkpoints(tmp_path, keep=1, read_only=True) as checkpoints:
            restored = checkpoints.restore(*values(0))
            # Saved when it said so; the next one may be complete without having been announced.
            assert restored.step in (reached, reached + 1)
            assert restored.state == {"step": restored.step}
            assert_same((restored.params, restored.opt_state), values(restored.step))
            reached = restored.step
    assert reached >= 3
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(reached + 1, *values(1), {})
        assert_same(checkpoints.restore_reference(values(0)[0]), values(100)[0])
    # What the killed writers left half-written is gone.
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        str(reached + 1),
        "reference",
    ]
