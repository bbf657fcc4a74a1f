"""When a crashed worker starts again, and when a worker hangs."""

import pytest

from gateway.process.worker_states import (
    CAUSE_BYTES,
    CHECK_SECONDS,
    FIRST_DELAY_SECONDS,
    HEALTHY_SECONDS,
    MAX_DELAY_SECONDS,
    RespawnSchedule,
    Watchdog,
    WorkerStates,
)
from tests.waiting import ManualClock


def test_each_crash_doubles_the_delay_up_to_a_bound() -> None:
    respawns = RespawnSchedule(clock=ManualClock(0.0))
    delays = [respawns.crashed(0, uptime=1) for _ in range(9)]
    assert delays[:4] == [
        FIRST_DELAY_SECONDS,
        2 * FIRST_DELAY_SECONDS,
        4 * FIRST_DELAY_SECONDS,
        8 * FIRST_DELAY_SECONDS,
    ]
    assert delays[-2:] == [MAX_DELAY_SECONDS, MAX_DELAY_SECONDS]


def test_a_minute_of_health_resets_the_delay() -> None:
    respawns = RespawnSchedule(clock=ManualClock(0.0))
    assert [respawns.crashed(0, uptime=uptime) for uptime in (1, 1, HEALTHY_SECONDS, 1)] == [0.5, 1, 0.5, 1]


def test_one_workers_crashes_do_not_delay_another() -> None:
    respawns = RespawnSchedule(clock=ManualClock(0.0))
    for _ in range(5):
        respawns.crashed(0, uptime=1)
    assert respawns.crashed(1, uptime=1) == FIRST_DELAY_SECONDS


def test_a_worker_is_due_once_its_delay_is_over_and_only_once() -> None:
    clock = ManualClock(0.0)
    respawns = RespawnSchedule(clock=clock)
    assert (respawns.wait(), respawns.take_due()) == (None, [])
    respawns.crashed(0, uptime=1)
    respawns.crashed(1, uptime=1)
    respawns.crashed(1, uptime=1)
    assert (respawns.wait(), respawns.take_due()) == (FIRST_DELAY_SECONDS, [])
    clock.now = FIRST_DELAY_SECONDS
    assert (respawns.wait(), respawns.take_due()) == (0, [0])
    assert respawns.wait() == pytest.approx(FIRST_DELAY_SECONDS)
    clock.now = 10
    assert (respawns.take_due(), respawns.wait()) == ([1], None)


def test_a_workers_state_keeps_its_cause_within_a_bound() -> None:
    states = WorkerStates(2)
    assert (states.ever_ready, states.cause(1)) == (False, "")
    states.set_failed(1, "ä" * CAUSE_BYTES)
    states.set_ready(0)
    states.count_crash(1)
    assert states.ever_ready
    assert len(states.cause(1).encode("utf-8", "replace")) <= CAUSE_BYTES + 2
    assert states.cause(0) == ""
    assert states.crashes() == {("0",): 0, ("1",): 1}


class Checks:
    """A watchdog over two workers, and the worker that beats while time passes."""

    def __init__(self) -> None:
        self.clock = ManualClock(0.0)
        self.states = WorkerStates(2)
        self.watchdog = Watchdog(self.states, clock=self.clock)

    def after(self, seconds: float, *, beats: tuple[int, ...] = ()) -> list[int]:
        """Return the workers that hang after these seconds, in which the workers `beats` have beaten."""
        self.clock.now += seconds
        for worker in beats:
            self.states.cells[worker].beats += 1
        return list(self.watchdog.hanging())


def test_a_worker_that_stops_to_beat_hangs_after_two_checks() -> None:
    checks = Checks()
    assert checks.after(CHECK_SECONDS, beats=(0, 1)) == []
    assert checks.after(CHECK_SECONDS, beats=(0,)) == []
    assert checks.after(CHECK_SECONDS - 1, beats=(0,)) == []
    assert checks.watchdog.wait() == 1
    assert checks.after(1) == [1]


def test_a_beat_in_between_shows_that_a_worker_runs() -> None:
    checks = Checks()
    assert checks.after(CHECK_SECONDS, beats=(0, 1)) == []
    for _ in range(3):
        assert checks.after(CHECK_SECONDS, beats=(0,)) == []
        assert checks.after(CHECK_SECONDS, beats=(0, 1)) == []


def test_workers_that_start_are_not_watched() -> None:
    checks = Checks()
    checks.after(CHECK_SECONDS, beats=(0, 1))
    checks.states.count_crash(1)
    assert [checks.after(CHECK_SECONDS, beats=(0,)) for _ in range(9)] == [[]] * 9
    checks.after(CHECK_SECONDS, beats=(0, 1))
    assert [checks.after(CHECK_SECONDS, beats=(0,)) for _ in range(2)] == [[], [1]]


def test_after_a_pause_of_the_whole_gateway_its_workers_have_time_to_beat() -> None:
    checks = Checks()
    checks.after(CHECK_SECONDS, beats=(0, 1))
    assert checks.after(1000 * CHECK_SECONDS) == []
    assert checks.after(1) == []
    assert checks.after(CHECK_SECONDS, beats=(0, 1)) == []
