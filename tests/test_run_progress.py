"""Progress: quiet off a terminal, honest about the time left."""

import io

import pytest

from spark_jax.run.progress import Progress, duration


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_one_line_per_unit_without_a_terminal():
    out, clock = io.StringIO(), Clock()
    with Progress("rl", 3, "iteration", stream=out, clock=clock) as progress:
        for _ in range(3):
            clock.now += 10
            progress.note("leaf 3 of 8")
            progress.advance(tokens=5000, success=0.25)
    lines = out.getvalue().splitlines()
    assert lines[0] == (
        "rl iteration 1/3 · success 0.25 · 500 tokens/s · 10 s per iteration · about 20 s left"
    )
    assert len(lines) == 3 and "left" not in lines[2]


def test_time_left_counts_only_what_this_process_did_and_ignores_one_slow_start():
    clock = Clock()
    progress = Progress("rl", 100, "iteration", done=90, stream=io.StringIO(), clock=clock)
    assert progress.seconds_left() is None
    for seconds in (60, 2, 2):  # the first one compiles
        clock.now += seconds
        progress.advance()
    assert progress.seconds_left() == pytest.approx(7 * 2)


def test_the_number_of_units_may_be_guessed_anew():
    for out in (io.StringIO(), Terminal()):
        clock = Clock()
        with Progress("rl", 2, "iteration", stream=out, clock=clock) as progress:
            clock.now += 10
            progress.expect(5)
            progress.advance()
        assert "1/5" in out.getvalue() and "about 40 s left" in out.getvalue()


def test_a_bar_on_a_terminal():
    out, clock = Terminal(), Clock()
    with Progress("warm-up", 2, "epoch", stream=out, clock=clock) as progress:
        progress.note("path 1 of 300")
        clock.now += 3
        progress.advance(loss=1.25)
    text = out.getvalue()
    assert (
        "warm-up" in text and "1/2" in text and "loss 1.25" in text and "about 3.0 s left" in text
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.42 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
