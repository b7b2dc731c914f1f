"""SFT that goes on as a control: how long, and over which dialogues."""

import collections
import types

from spark_jax.run import supervised
from spark_jax.run.defaults import base_config


def test_the_control_ends_by_the_clock_and_reads_all_before_any_again(monkeypatch):
    """A part takes a second by this clock; 30 dialogues are eight parts, the last one of two."""
    config = base_config()
    config.algo.name, config.sft.batch_paths, config.sft.extra_seconds = "sft", 1, 11.0
    now, read, rates = [0.0], [], []

    def sft_epoch(steps, params, opt_state, lessons, policy, seed, part, *rest):
        read.append((part, list(lessons)))
        rates.append(rest[3](0.0))
        now[0] += 1.0
        return params + 1, opt_state, {"train/loss": 0.5}

    monkeypatch.setattr(supervised.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(supervised.warmup, "sft_epoch", sft_epoch)
    monkeypatch.setattr(supervised, "sft_steps", lambda *args: None)
    monkeypatch.setattr(supervised, "_sft_data", lambda *args: ((8, 8, 1), list(range(30)), None))
    rows = []
    run = types.SimpleNamespace(
        config=config, policy=None, state=types.SimpleNamespace(step=5),
        metrics=types.SimpleNamespace(write=lambda step, phase, row: rows.append((step, row))),
    )  # fmt: skip
    params, _ = supervised.more_warm_up(run, None, 0, None)
    assert params == 11 and now[0] == 11.0  # of the second round three parts, and not all eight
    assert len({part for part, _ in read}) == 11  # names and slips are drawn anew in each
    times = collections.Counter(lesson for _, lessons in read for lesson in lessons)
    assert set(times) == set(range(30)) and sorted(times.values()) == [1] * 18 + [2] * 12
    assert [step for step, _ in rows] == list(range(6, 17))
    assert all(row["time/update_s"] == 1.0 for _, row in rows)
    assert rates == sorted(rates, reverse=True) and rates[0] > 5 * rates[-1]
