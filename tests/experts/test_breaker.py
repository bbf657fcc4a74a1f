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


def test_a_failed_trial_begins_a_new_cool_down_and_an_answered_one_forgets_the_failures() -> None:
    breaker, clock = breaker_of()
    fail(breaker, MAX_FAILURES)
    waits = []
    for _ in range(100):
        waits.append(breaker.blocked_until - clock.now)
        clock.now += waits[-1]
        trial = breaker.begin()
        assert not breaker.ready(clock.now)  # one trial at a time
        breaker.failed(trial)
        breaker.failed(breaker.begin())  # one that was forced does not delay the next trial
        assert (breaker.blocked_until - clock.now) <= COOL_DOWN
    assert 0 < min(waits) < 0.2 * COOL_DOWN < 0.8 * COOL_DOWN < max(waits) <= COOL_DOWN  # by chance, not all at once
    clock.now += COOL_DOWN
    breaker.succeeded(breaker.begin())
    fail(breaker, MAX_FAILURES - 1)
    assert breaker.state == "closed"


def test_failures_of_one_caller_open_it_for_nobody_else_and_those_of_two_do() -> None:
    breaker, _ = breaker_of()
    for caller in ["a"] * 3 * WINDOW_SIZE + ["b"]:
        breaker.failed(breaker.begin(), caller)
    assert breaker.state == "closed"
    breaker.failed(breaker.begin(), "c")
    assert breaker.state == "open"


def test_throttling_expires_and_is_bounded() -> None:
    breaker, clock = breaker_of()
    breaker.throttle(3)
    assert breaker.state == "rate_limited"
    assert (breaker.blocked_until - clock.now) == 3
    breaker.throttle(1)
    assert (breaker.blocked_until - clock.now) == 3
    breaker.succeeded(breaker.begin())  # one that was under way
    assert not breaker.ready(clock.now)
    clock.now += 3
    assert breaker.state == "closed"
    assert breaker.ready(clock.now)
    breaker.throttle(3600)
    assert (breaker.blocked_until - clock.now) == MAX_THROTTLE
