"""The circuit breaker: when it opens, how trials close it, and its invariants."""

from coe.experts.replicas import COOL_DOWN, MAX_FAILURES, MAX_THROTTLE, WINDOW_SIZE, Breaker
from tests.waiting import ManualClock


def breaker_of() -> tuple[Breaker, ManualClock]:
    clock = ManualClock()
    return Breaker(clock=clock), clock


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.failed(breaker.begin())


def test_so_do_the_same_failures_among_successes_and_older_ones_are_forgotten() -> None:
    breaker, _ = breaker_of()
    for _ in range(3):
        fail(breaker, MAX_FAILURES - 1)
        for _ in range(WINDOW_SIZE):
            breaker.succeeded(breaker.begin())
    for _ in range(MAX_FAILURES - 1):
        fail(breaker)
        breaker.succeeded(breaker.begin())
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.state == "open"


def test_a_failed_trial_begins_the_cool_down_again_and_an_answered_one_forgets_the_failures() -> None:
    breaker, clock = breaker_of()
    fail(breaker, MAX_FAILURES)
    for _ in range(3):
        clock.now += COOL_DOWN
        fail(breaker)
        assert breaker.wait(clock.now) == COOL_DOWN
    clock.now += COOL_DOWN
    breaker.succeeded(breaker.begin())
    fail(breaker, MAX_FAILURES - 1)
    assert breaker.state == "closed"


def test_throttling_expires_and_is_bounded() -> None:
    breaker, clock = breaker_of()
    breaker.throttle(3)
    assert breaker.state == "rate_limited"
    assert breaker.wait(clock.now) == 3
    breaker.throttle(1)
    assert breaker.wait(clock.now) == 3
    breaker.succeeded(breaker.begin())  # one that was under way
    assert not breaker.ready(clock.now)
    clock.now += 3
    assert breaker.state == "closed"
    assert breaker.ready(clock.now)
    breaker.throttle(3600)
    assert breaker.wait(clock.now) == MAX_THROTTLE
