"""FirstPieces: how long an expert usually takes to begin, and when that is no longer known."""

import numpy as np
import pytest

from coe.experts.replicas import MAX_TIMES, MIN_TIMES, FirstTokenTimes


def test_a_percentile_is_of_the_latest_times_alone() -> None:
    times = FirstTokenTimes()
    for number in range(1000):
        times.record(1.0 if number < 600 else number % 100 / 100)
    assert times.p95 == pytest.approx(0.94, abs=0.02)
    for _ in range(MAX_TIMES):
        times.record(3.0)
    assert times.p95 == 3.0


def test_streams_that_others_beat_do_not_make_the_rest_seem_slow() -> None:
    """Two alike, each given company beyond its own 95 %: that stays near one stream in twenty."""
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


def test_an_expert_that_became_slower_is_waited_for_until_that_is_known() -> None:
    times = FirstTokenTimes()
    for _ in range(MAX_TIMES):
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


def test_while_too_many_were_given_up_there_is_no_usual_time() -> None:
    times = FirstTokenTimes()
    for _ in range(MIN_TIMES):
        times.record(0.01)
    for _ in range(10):
        assert times.p95 is not None
        times.record_abandoned(60.0)
    assert times.p95 is None
    times.record_abandoned(0.001)
    for _ in range(10):
        times.record(0.01)
    assert times.p95 is not None
