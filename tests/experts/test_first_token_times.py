"""FirstTokenTimes: the 95th percentile of the time to the first token, and when it is unknown."""

import numpy as np
import pytest

from coe.experts.outcomes import MAX_SAMPLES, MIN_SAMPLES, FirstTokenTimes


def test_the_percentile_covers_the_latest_times_only() -> None:
    times = FirstTokenTimes()
    for number in range(1000):
        times.record(1.0 if number < 600 else number % 100 / 100)
    assert times.p95 == pytest.approx(0.94, abs=0.02)
    for _ in range(MAX_SAMPLES):
        times.record(3.0)
    assert times.p95 == 3.0


def test_abandoned_streams_do_not_lower_the_percentile() -> None:
    """Streams slower than the percentile are hedged with an equal expert: about one stream in twenty."""
    rng, times, hedged = np.random.default_rng(0), FirstTokenTimes(), 0
    for first, second in rng.lognormal(sigma=1.5, size=(20_000, 2)).tolist():
        usual = times.p95
        if usual is not None and first > usual:
            hedged += 1
            if usual + second < first:
                times.record_abandoned(usual + second)
                continue
        times.record(first)
    assert 0.04 < hedged / 20_000 < 0.08


def test_an_expert_that_became_slower_gets_a_new_percentile() -> None:
    times = FirstTokenTimes()
    for _ in range(MAX_SAMPLES):
        times.record(0.01)
    asked_twice = 0
    for _ in range(200):
        usual = times.p95
        if usual is not None and usual < 0.3:
            asked_twice += 1
            times.record_abandoned(usual + 0.01)
        else:
            times.record(0.3)
    assert asked_twice < 15
    assert times.p95 == 0.3


def test_too_many_abandoned_streams_suspend_the_percentile() -> None:
    times = FirstTokenTimes()
    for _ in range(MIN_SAMPLES):
        times.record(0.01)
    for _ in range(10):
        assert times.p95 is not None
        times.record_abandoned(60.0)
    assert times.p95 is None
    times.record_abandoned(0.001)
    for _ in range(10):
        times.record(0.01)
    assert times.p95 is not None
