"""The learning rate of RL, by optimiser step, and where RL ends."""

import pytest
from ml_collections import ConfigDict

from spark_jax.run.iteration import iterations_in_all, learning_rate, rl_is_over


def config(warmup_steps=0, decay_to=1.0, tokens=0):
    rl = {"learning_rate": 0.5, "warmup_steps": warmup_steps, "decay_to": decay_to}
    return ConfigDict({"rl": rl | {"iterations": 4, "minibatches": 2, "sampled_tokens": tokens}})


EQUAL = [1000] * 4


def test_rises_over_the_warm_up_steps_and_stays():
    rates = [learning_rate(config(4), step, EQUAL) for step in range(7)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5])


def test_without_warm_up_steps_it_is_constant():
    assert [learning_rate(config(0), step, []) for step in (0, 1, 100)] == [0.5, 0.5, 0.5]


def test_falls_to_the_end_in_the_last_step():
    rates = [learning_rate(config(2, decay_to=0.2), step, []) for step in range(8)]
    assert rates == pytest.approx([0.5 / 3, 1.0 / 3, 0.5, 0.42, 0.34, 0.26, 0.18, 0.1])
    assert learning_rate(config(2, decay_to=0.2), 20, []) == pytest.approx(0.1)


@pytest.mark.parametrize("warmup_steps", [0, 1, 2, 3, 7])
def test_over_tokens_it_falls_as_over_steps_where_iterations_are_equal(warmup_steps):
    over_steps, over_tokens = config(warmup_steps, 0.2), config(warmup_steps, 0.2, tokens=4000)
    for step in range(8):
        known = EQUAL[: step // 2 + 1]  # iterations to come have not sampled anything
        rate = learning_rate(over_steps, step, known)
        assert learning_rate(over_tokens, step, known) == pytest.approx(rate)


def test_over_tokens_it_is_the_share_of_the_budget_that_counts():
    # The rise is step 0, half of the first iteration: 300 tokens; 1500 are left to fall over.
    sampled = [600, 900, 600]
    rates = [learning_rate(config(0, 0.2, tokens=1800), step, sampled) for step in range(6)]
    shares = [0, 300 / 1500, 750 / 1500, 1200 / 1500, 1, 1]  # the budget ends in step 4
    assert rates == pytest.approx([0.5 * (1 - 0.8 * share) for share in shares])


def test_rl_ends_after_its_iterations_or_with_its_tokens():
    assert [rl_is_over(config(), [9] * n) for n in range(6)] == [False] * 4 + [True] * 2
    budget = config(tokens=100)
    assert [rl_is_over(budget, [9] * n) for n in (4, 11, 12)] == [False, False, True]
    assert rl_is_over(budget, [100]) and not rl_is_over(budget, [99])


def test_iterations_that_a_budget_will_take():
    assert iterations_in_all(config(), [9]) == 4
    budget = config(tokens=100)
    assert iterations_in_all(budget, []) == 4
    assert iterations_in_all(budget, [30]) == 4
    assert iterations_in_all(budget, [30, 20]) == 4
    assert iterations_in_all(budget, [10, 20]) == 7
    assert iterations_in_all(budget, [60, 60]) == 2
