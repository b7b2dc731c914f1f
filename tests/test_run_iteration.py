"""The learning rate of RL, by optimiser step."""

import pytest
from ml_collections import ConfigDict

from spark_jax.run.iteration import learning_rate


def config(warmup_steps):
    return ConfigDict({"rl": {"learning_rate": 0.5, "warmup_steps": warmup_steps}})


def test_rises_over_the_warm_up_steps_and_stays():
    rates = [learning_rate(config(4), step) for step in range(7)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5])


def test_without_warm_up_steps_it_is_constant():
    assert [learning_rate(config(0), step) for step in (0, 1, 100)] == [0.5, 0.5, 0.5]
