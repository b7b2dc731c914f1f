"""Several engines that work like one, on devices of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROWS = """
import jax, numpy as np
from test_engine import CONFIG, END, NEVER, prompt, run
from spark_jax.models.sharding import cache_sharding, data_parts, make_mesh, param_shardings
from spark_jax.models.transformer import init_params
from spark_jax.rollout.engine import Engine
from spark_jax.rollout.row import Row
from spark_jax.rollout.sampler import Sampler
from spark_jax.rollout.engine_shape import EngineShape
from spark_jax.rollout.engines import Engines
from spark_jax.rollout.identity import row_key

shape = EngineShape(rows=4, slots=4, pages=256, path_tokens=96, chunk=5, prefill_tokens=48)
params = jax.tree.map(lambda x: x * 6 if x.ndim == 2 else x, init_params(CONFIG, jax.random.key(0)))

def rows_of(engine):
    trunks = [Row(prompt(i, 20 + i), row_key("trunk", i), 0) for i in range(6)]
    run(engine, trunks)
    homes = [trunk.pages.home for trunk in trunks]
    rows = []
    for i, trunk in enumerate(trunks):
        for j in range(3):
            pages = engine.fork(trunk.pages)
            rows.append(Row(list(trunk.tokens), row_key("leaf", i, j), 10, pages))
            assert rows[-1].pages.home == trunk.pages.home
        engine.release(trunk.pages)
    run(engine, rows)
    for row in rows:
        engine.release(row.pages)
    return homes, [row.response for row in rows], np.concatenate([row.logprobs for row in rows])

one = Engine(Sampler(CONFIG, shape, NEVER, END))
one.use(params, 1.0)
_, expected, logprobs = rows_of(one)

mesh = make_mesh(data=2)
parts = data_parts(mesh)
spread = jax.device_put(params, param_shardings(params, mesh))
places = [cache_sharding(CONFIG.kv_heads, part) for part in parts]
many = Engines([Engine(Sampler(CONFIG, shape, NEVER, END, place=place)) for place in places], parts)
many.use(spread, 1.0)
compiled = []
many.compile_all()
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None)
homes, got, close = rows_of(many)
assert compiled == [], compiled
assert many.capacity == 8 and sorted(homes) == [0, 0, 0, 1, 1, 1], homes
assert got == expected
np.testing.assert_allclose(close, logprobs, atol=2e-5)
assert many.stats.response_tokens == one.stats.response_tokens > 100
for engine, part in zip(many._engines, parts):
    assert engine.pool.used_pages == 0
    engine.use(engine.sampler.params, 1.0)
    assert engine.kv[0][0].devices() == set(part.devices.flat)
    assert engine.kv[0][0].addressable_shards[0].data.shape[1] == CONFIG.kv_heads
print("equal")
"""

CUT = """
import jax, numpy as np, re
from test_engine import CONFIG, END, NEVER, prompt, run
from spark_jax.models.sharding import cache_sharding, make_mesh, param_shardings
from spark_jax.models.transformer import init_params
from spark_jax.rollout import sampler
from spark_jax.rollout.engine import Engine
from spark_jax.rollout.engine_shape import EngineShape
from spark_jax.rollout.identity import row_key
from spark_jax.rollout.row import Row

shape = EngineShape(rows=4, slots=4, pages=256, path_tokens=96, chunk=5, prefill_tokens=48)
params = jax.tree.map(lambda x: x * 6 if x.ndim == 2 else x, init_params(CONFIG, jax.random.key(0)))
program = sampler.decode_chunk

def sampled(params, place):
    engine = Engine(sampler.Sampler(CONFIG, shape, NEVER, END, place=place))
    engine.use(params, 1.0)
    taken = engine.device_bytes(params)
    rows = [Row(prompt(i, 20 + i), row_key("row", i), 12) for i in range(6)]
    run(engine, rows)
    logprobs = np.concatenate([row.logprobs for row in rows])
    return [row.response for row in rows], logprobs, taken, engine.sampler._laid_out().plain

expected, logprobs, _, _ = sampled(params, None)
texts = []
def watched(*arguments, **options):
    if not texts:
        texts.append(program.lower(*arguments, **options).compile().as_text())
    return program(*arguments, **options)
sampler.decode_chunk = watched
mesh = make_mesh(fsdp=2)
spread = jax.device_put(params, param_shardings(params, mesh))
got, close, taken, copy = sampled(spread, cache_sharding(CONFIG.kv_heads, mesh))
assert got == expected
np.testing.assert_allclose(close, logprobs, atol=2e-5)
shards = [x.addressable_shards[0].data for x in jax.tree.leaves(copy) if x.ndim > 1]
assert taken["weights in float32"] == sum(x.nbytes for x in shards)
# After attention and after the feed-forward layer; nothing is gathered.
kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
exchanges = re.findall(rf" ({kinds})(?:-start)?[(]", texts[0])
assert exchanges == ["all-reduce"] * 2 * CONFIG.layers, exchanges
print("equal")
"""


def run_on_two_devices(script):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=here, capture_output=True, text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip(),
                          "PYTHONPATH": f"{here.parent}:{here}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("equal")


def test_engines_on_their_own_devices_sample_what_one_does():
    """Each on one device; test_run_loop.py has two on two devices each."""
    run_on_two_devices(ROWS)


def test_weights_cut_over_devices_cost_two_exchanges_a_layer():
    run_on_two_devices(CUT)
