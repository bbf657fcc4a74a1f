"""A request that is always ready to run, so that all others yield."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.cohort import Cohort
from tests.fakes import Gateway


@contextmanager
def another_ready(gateway: Gateway) -> Iterator[Cohort]:
    """Count another request as ready all the time, so that every request yields before each step."""
    cohort = gateway.serving_state.cohort
    cohort.ready += 1
    yield cohort
    cohort.ready -= 1
    assert cohort.ready == 0
