"""When a crashed worker starts again."""

import pytest

from gateway.process.processes import CAUSE_BYTES, FIRST_DELAY, HEALTHY, MAX_DELAY, Respawns, WorkerStates


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_crash_doubles_the_delay_up_to_a_bound() -> None:
    respawns = Respawns(clock=Clock())
    delays = [respawns.crashed(0, ran=1) for _ in range(9)]
    assert delays[:4] == [FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY, 8 * FIRST_DELAY]
    assert delays[-2:] == [MAX_DELAY, MAX_DELAY]


def test_a_minute_of_health_resets_the_delay() -> None:
    respawns = Respawns(clock=Clock())
    assert [respawns.crashed(0, ran=ran) for ran in (1, 1, HEALTHY, 1)] == [0.5, 1, 0.5, 1]


def test_one_workers_crashes_do_not_delay_another() -> None:
    respawns = Respawns(clock=Clock())
    for _ in range(5):
        respawns.crashed(0, ran=1)
    assert respawns.crashed(1, ran=1) == FIRST_DELAY


def test_a_worker_is_due_once_its_delay_is_over_and_only_once() -> None:
    clock = Clock()
    respawns = Respawns(clock=clock)
    assert (respawns.wait(), respawns.take_due()) == (None, [])
    respawns.crashed(0, ran=1)
    respawns.crashed(1, ran=1)
    respawns.crashed(1, ran=1)
    assert (respawns.wait(), respawns.take_due()) == (FIRST_DELAY, [])
    clock.now = FIRST_DELAY
    assert (respawns.wait(), respawns.take_due()) == (0, [0])
    assert respawns.wait() == pytest.approx(FIRST_DELAY)
    clock.now = 10
    assert (respawns.take_due(), respawns.wait()) == ([1], None)


def test_a_workers_state_keeps_its_cause_within_a_bound() -> None:
    states = WorkerStates(2)
    assert (states.ever_ready, states.cause(1)) == (False, "")
    states.failed(1, "ä" * CAUSE_BYTES)
    states.ready(0)
    states.crashed(1)
    assert states.ever_ready
    assert len(states.cause(1).encode("utf-8", "replace")) <= CAUSE_BYTES + 2
    assert states.cause(0) == ""
    assert states.crashes() == {("0",): 0, ("1",): 1}
