"""Requests of one tree, without a tree."""

from spark_jax.rollout.budget import Budget, Grant


def test_what_is_withdrawn_hides_no_deeper_request():
    """Reasoning of step 1 whose action ends its path, while a fork of step 2 waits for it."""
    budget = Budget(8, ("tree",))
    budget.start((0,), 0)
    budget.start((1,), 0)
    assert budget.request((0, 0), 2, 2)
    budget.finish((0,))
    assert budget.decide() == []  # (1,) may still ask at step 1
    assert budget.request((1,), 1, 2)
    budget.withdraw((1,))
    budget.finish((1,))
    assert budget.decide() == [Grant((0, 0), 2)] and not budget.requests
