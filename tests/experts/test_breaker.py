"""The circuit breaker: when it opens, how trials close it, and its invariants."""

from hypothesis import given
from hypothesis import strategies as st

from coe.experts.outcomes import COOL_DOWN, MAX_FAILURES, MAX_THROTTLE, WINDOW_SIZE, Breaker
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


def test_a_slow_trial_blocks_others_for_one_cool_down_only() -> None:
    breaker, clock = breaker_of()
    fail(breaker, MAX_FAILURES)
    clock.now += COOL_DOWN
    long = breaker.begin()
    assert not breaker.ready(clock.now)
    assert breaker.wait(clock.now) == COOL_DOWN
    clock.now += COOL_DOWN
    assert breaker.ready(clock.now)
    breaker.answered(breaker.begin())
    assert breaker.state == "closed"
    breaker.succeeded(long)
    assert breaker.state == "closed"


def test_outcomes_of_requests_from_before_the_opening_are_ignored() -> None:
    breaker, clock = breaker_of()
    early = [breaker.begin() for _ in range(3)]
    fail(breaker, MAX_FAILURES)
    breaker.succeeded(early[0])
    breaker.failed(early[1])
    breaker.cancelled(early[2])
    assert breaker.wait(clock.now) == COOL_DOWN
    assert breaker.state == "open"


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


def test_a_failure_counts_as_recent_for_a_second() -> None:
    breaker, clock = breaker_of()
    assert not breaker.failed_recently(clock.now)
    fail(breaker)
    assert breaker.failed_recently(clock.now)
    clock.now += 1.0
    assert not breaker.failed_recently(clock.now)


class Traffic:
    """Requests in flight at a breaker, each with its generation number and whether it is a trial."""

    def __init__(self) -> None:
        self.breaker, self.clock = breaker_of()
        self.running: list[tuple[int, bool]] = []

    def begin(self, _: int) -> None:
        if self.breaker.ready(self.clock.now):
            trial = self.breaker.state == "half_open"
            assert trial or self.breaker.state == "closed"
            assert not trial or not any(other for _, other in self.running if other)
            self.running.append((self.breaker.begin(), trial))

    def answered(self, which: int) -> None:
        if self.running:
            generation, _ = self.running[which % len(self.running)]
            self.breaker.answered(generation)
            self._settle()

    def succeeded(self, which: int) -> None:
        self._end("succeeded", which)

    def failed(self, which: int) -> None:
        self._end("failed", which)

    def cancelled(self, which: int) -> None:
        self._end("cancelled", which)

    def later(self, seconds: int) -> None:
        self.clock.now += seconds

    def throttle(self, seconds: int) -> None:
        self.breaker.throttle(seconds)

    def _end(self, how: str, which: int) -> None:
        if self.running:
            generation, _ = self.running.pop(which % len(self.running))
            getattr(self.breaker, how)(generation)
            self._settle()

    def _settle(self) -> None:
        if self.breaker.state in ("closed", "rate_limited", "open"):  # what was a trial is decided
            self.running = [(generation, False) for generation, _ in self.running]


NAMES = (
    "begin",
    "begin",
    "answered",
    "succeeded",
    "failed",
    "failed",
    "cancelled",
    "later",
    "throttle",
)


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 70)), max_size=150))
def test_one_trial_at_a_time_is_sent_and_every_breaker_recovers(steps: list[tuple[str, int]]) -> None:
    traffic = Traffic()
    breaker, clock = traffic.breaker, traffic.clock
    for name, argument in steps:
        was = breaker.state
        getattr(traffic, name)(argument)
        assert breaker.state != "closed" or breaker.ready(clock.now)
        assert was != "open" or name in ("later", "answered", "succeeded", "cancelled") or breaker.state == "open"
        assert 0 <= breaker.wait(clock.now) <= MAX_THROTTLE
    for generation, _ in traffic.running:
        breaker.cancelled(generation)
    clock.now += MAX_THROTTLE
    assert breaker.ready(clock.now)
    breaker.succeeded(breaker.begin())
    assert breaker.state == "closed"
