"""Load shedding: when a request may wait for the sentence encoder, by a clock that the test sets."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from coe.routing.classification import (
    ENCODER_BACKOFF_FACTOR,
    MAX_BACKOFF_SECONDS,
    MAX_ENCODER_PASSES,
    SLOW_ENCODER_PASS_SECONDS,
    SLOW_MULTILINGUAL_PASS_SECONDS,
    LoadShedding,
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_number_of_concurrent_encoder_passes_is_limited() -> None:
    load_shedding = LoadShedding(clock=Clock())
    with ExitStack() as passes:
        for _ in range(MAX_ENCODER_PASSES):
            assert load_shedding.has_capacity
            passes.enter_context(load_shedding.encoder_pass())
        assert not load_shedding.has_capacity
    assert load_shedding.has_capacity


def test_after_a_slow_pass_passes_are_skipped_for_a_multiple_of_its_duration() -> None:
    clock = Clock()
    load_shedding = LoadShedding(clock=clock)
    with load_shedding.encoder_pass():
        clock.now += 2 * SLOW_ENCODER_PASS_SECONDS
    assert not load_shedding.has_capacity
    clock.now += 2 * SLOW_ENCODER_PASS_SECONDS * ENCODER_BACKOFF_FACTOR - 0.001
    assert not load_shedding.has_capacity
    clock.now += 0.002
    assert load_shedding.has_capacity


def test_the_first_pass_which_loads_an_encoder_stops_passes_for_a_bounded_time() -> None:
    clock = Clock()
    load_shedding = LoadShedding(slow=SLOW_MULTILINGUAL_PASS_SECONDS, clock=clock)
    with load_shedding.encoder_pass():
        clock.now += SLOW_MULTILINGUAL_PASS_SECONDS / 2
    assert load_shedding.has_capacity
    with load_shedding.encoder_pass():
        clock.now += 60
    assert not load_shedding.has_capacity
    clock.now += MAX_BACKOFF_SECONDS
    assert load_shedding.has_capacity


def test_a_fast_pass_delays_no_other() -> None:
    clock = Clock()
    load_shedding = LoadShedding(clock=clock)
    with load_shedding.encoder_pass():
        clock.now += SLOW_ENCODER_PASS_SECONDS / 2
    assert load_shedding.has_capacity


def test_a_failed_pass_is_no_longer_counted() -> None:
    load_shedding = LoadShedding(clock=Clock())
    for _ in range(MAX_ENCODER_PASSES + 1):
        with pytest.raises(ValueError, match="x"), load_shedding.encoder_pass():
            raise ValueError("x")
    assert load_shedding.has_capacity
