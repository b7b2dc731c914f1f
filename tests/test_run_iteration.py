"""The learning rate of RL, by optimiser step."""

import pytest
from ml_collections import ConfigDict

from spark_jax.run.iteration import learning_rate


def config(warmup_steps, decay_to=1.0):
    rl = {"learning_rate": 0.5, "warmup_steps": warmup_steps, "decay_to": decay_to}
    return ConfigDict({"rl": rl | {"iterations": 4, "minibatches": 2}})


def test_rises_over_the_warm_up_steps_and_stays():
    rates = [learning_rate(config(4), step) for step in range(7)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5])


def test_without_warm_up_steps_it_is_constant():
    assert [learning_rate(config(0), step) for step in (0, 1, 100)] == [0.5, 0.5, 0.5]


def test_falls_to_the_end_in_the_last_step():
    rates = [learning_rate(config(2, decay_to=0.2), step) for step in range(8)]
    assert rates == pytest.approx([0.5 / 3, 1.0 / 3, 0.5, 0.42, 0.34, 0.26, 0.18, 0.1])
    assert learning_rate(config(2, decay_to=0.2), 20) == pytest.approx(0.1)
