"""What a run needs of a device's memory."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from spark_jax.cache.kv import init_kv
from spark_jax.models import transformer
from spark_jax.models.config import ModelConfig
from spark_jax.rollout.engine import Engine
from spark_jax.rollout.engine_shape import EngineShape
from spark_jax.rollout.sampler import Sampler
from spark_jax.rollout.stops import stop_table
from spark_jax.run import footprint
from spark_jax.run.config import load_config
from spark_jax.run.footprint import check, device_bytes
from spark_jax.run.loop import run
from spark_jax.types import UserError

CONFIG = ModelConfig(
    vocab_size=97, layers=2, width=32, heads=4, kv_heads=2, head_dim=8, feed_forward=48
)


def test_bytes_are_those_of_one_device():
    mesh = AbstractMesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    place = NamedSharding(mesh, PartitionSpec("fsdp"))
    cut = jax.ShapeDtypeStruct((8, 3), jnp.bfloat16, sharding=place)
    assert device_bytes({"a": cut, "b": jnp.zeros((5,), jnp.float32)}) == 2 * 3 * 2 + 5 * 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_engine_takes_what_it_says(dtype):
    shape = EngineShape(rows=4, slots=16, pages=40, path_tokens=200)
    stop = stop_table([bytes([i]) for i in range(97)], ["~~"])
    engine = Engine(Sampler(CONFIG, shape, stop, 96, dtype))
    kv = init_kv(CONFIG, 40, 16, dtype)
    taken = {"cache": sum(x.nbytes for x in jax.tree.leaves(kv))}
    params = transformer.init_params(CONFIG, jax.random.key(0))
    if dtype == "bfloat16":
        matrices = [x for x in jax.tree.leaves(params) if x.ndim > 1]
        taken["weights in bfloat16"] = 2 * sum(x.size for x in matrices)
    assert engine.device_bytes(params) == taken


def test_too_much_is_refused_in_one_sentence():
    always, sampling = {"parameters": 6_200_000_000}, {"cache": 15_000_000_000, "copy": 10**9}
    training = {"gradients": 3_000_000_000}
    assert check(always, sampling, training, None) == ""
    assert check(always, sampling, training, 60_000_000_000) == (
        "22.2 of 60.0 GB on each device, without activations (parameters 6.2; while sampling "
        "cache 15.0, copy 1.0; while training gradients 3.0)"
    )
    with pytest.raises(UserError, match=r"needs 22\.2 of 20\.0 GB .*lower rollout\.pages"):
        check(always, sampling, training, 20_000_000_000)
    with pytest.raises(UserError, match=r"needs 23\.2 of 20\.0 GB"):
        check(always, sampling, {"gradients": 17_000_000_000}, 20_000_000_000)


def test_a_run_that_does_not_fit_ends_at_its_start(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(footprint, "room_of_a_device", lambda: 1_000_000)
    config = load_config("configs/toy.py", ["model.dtype=bfloat16"])
    with pytest.raises(UserError, match=r"of 0\.0 GB .*parameters .*optimiser .*reference .*"
                       r"cache .*weights in bfloat16 .*gradients .*: lower"):  # fmt: skip
        run(config, tmp_path)
