"""When a request may wait for the sentence encoder, by a clock in the test's hand."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from coe.routing.classification import LONG, REST, TOGETHER, LoadShedding


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_so_many_looks_may_be_under_way_and_no_more() -> None:
    leisure = LoadShedding(clock=Clock())
    with ExitStack() as looks:
        for _ in range(TOGETHER):
            assert leisure
            looks.enter_context(leisure.look())
        assert not leisure
    assert leisure


def test_after_a_long_look_there_is_none_for_some_time() -> None:
    clock = Clock()
    leisure = LoadShedding(clock=clock)
    with leisure.look():
        clock.now += 2 * LONG
    assert not leisure
    clock.now += 2 * LONG * REST - 0.001
    assert not leisure
    clock.now += 0.002
    assert leisure


def test_a_short_look_delays_no_other() -> None:
    clock = Clock()
    leisure = LoadShedding(clock=clock)
    with leisure.look():
        clock.now += LONG / 2
    assert leisure


def test_a_look_that_fails_is_over_too() -> None:
    leisure = LoadShedding(clock=Clock())
    for _ in range(TOGETHER + 1):
        with pytest.raises(ValueError, match="x"), leisure.look():
            raise ValueError("x")
    assert leisure
