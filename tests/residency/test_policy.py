"""The scheduling policy: which server is loaded, which ones are evicted, which requests wait."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from coe.fleet.residency.policy import DeviceState, ServerProfile, ServerState, Tier, plan
from tests.residency.simulation import LOAD_SECONDS, UNLOAD_SECONDS, Simulation, scheduler_of

A, B, C, D = (ServerProfile(key, 10.0) for key in "abcd")
MAX_WAIT, WORK = 10.0, 4.0


def server(profile: ServerProfile, tier: Tier, *waiting: float, in_flight: int = 0, **more: Any) -> ServerState:
    """A server with requests that arrived at the times `waiting`."""
    arrivals = dict(enumerate(waiting))
    return ServerState(profile, tier, waiting=arrivals, in_flight=set(range(100, 100 + in_flight)), **more)


def state(*servers: ServerState, memory: float = 10.0, host_memory: float = 0.0, now: float = 0.0) -> DeviceState:
    return DeviceState(now, memory, host_memory, MAX_WAIT, servers)


def orders(
    *servers: ServerState, memory: float = 10.0, host_memory: float = 0.0, now: float = 0.0
) -> list[tuple[str, str]]:
    decided = plan(state(*servers, memory=memory, host_memory=host_memory, now=now))
    return [(action.verb, action.key) for action in decided.actions]


RARE = server(B, "stopped", 0.0)


def test_an_idle_server_leaves_at_once_and_the_one_used_longest_ago_first() -> None:
    assert orders(server(A, "awake"), RARE) == [("stop", "a")]
    awake = server(A, "awake", last_used=2.0), server(C, "awake", last_used=1.0)
    assert orders(*awake, RARE, memory=20.0, now=3.0) == [("stop", "c")]


def test_a_busy_server_takes_no_new_requests_once_another_has_waited_for_max_wait() -> None:
    busy, newcomer = server(A, "awake", in_flight=1), server(A, "awake", 5.0, in_flight=1)
    assert plan(state(busy, RARE)).next_check == MAX_WAIT
    assert orders(newcomer, RARE, now=9.0) == [("admit", "a")]
    assert orders(newcomer, RARE, now=MAX_WAIT) == []
    assert orders(server(A, "awake", 5.0), RARE, now=MAX_WAIT) == [("stop", "a")]


def test_the_most_urgent_server_is_loaded_first() -> None:
    """Urgency: the sum of the cubed waits."""
    early, late = server(B, "stopped", 1.0), server(C, "stopped", 2.0)
    assert orders(late, early, now=9.0) == [("load", "b")]
    assert orders(server(C, "stopped", *[2.0] * 9), early, now=9.0) == [("load", "c")]
    assert orders(server(C, "stopped", *[8.0] * 9), early, now=9.0) == [("load", "b")]


def test_an_evicted_server_sleeps_if_ram_is_free_and_else_stops_with_the_sleeper_used_longest_ago() -> None:
    a, c, d = (replace(one, sleeps=True, host_memory=10.0) for one in (A, C, D))
    assert orders(server(a, "awake"), RARE, host_memory=10.0) == [("sleep", "a")]
    sleepers = server(c, "asleep", last_used=2.0), server(d, "asleep", last_used=1.0)
    leaves = server(a, "awake", last_used=3.0)
    assert orders(leaves, RARE, *sleepers, host_memory=20.0) == [("stop", "a"), ("stop", "d")]
    assert orders(replace(leaves, last_used=0.0), RARE, *sleepers, host_memory=20.0) == [("stop", "a")]


def test_sleeping_servers_are_stopped_if_their_device_memory_is_needed_and_those_with_waiting_requests_last() -> None:
    sleeper = server(replace(A, sleeps=True, asleep_memory=2.0), "asleep")
    asked = server(replace(C, sleeps=True, asleep_memory=2.0), "asleep", 5.0)
    assert orders(sleeper, RARE, memory=11.0) == [("stop", "a")]
    assert orders(sleeper, asked, RARE, memory=13.0, now=6.0) == [("stop", "a")]
    assert orders(asked, RARE, memory=11.0, now=6.0) == [("stop", "c")]


def test_a_server_whose_start_failed_is_not_loaded_before_its_retry_time() -> None:
    failed = server(A, "stopped", 5.0, retry_at=27.0)
    assert plan(state(failed, now=16.0)).next_check == 27.0
    assert orders(failed, now=16.0) == []
    assert orders(failed, now=27.0) == [("load", "a")]


DEVICE = 21.0
keys = st.sampled_from("abcde")
requests = st.lists(st.tuples(st.floats(0.0, 60.0), keys, st.floats(0.01, WORK)), max_size=40)
sizes = st.lists(st.floats(1.0, 0.95 * DEVICE), min_size=5, max_size=5)


@settings(max_examples=150)
@given(sizes, st.floats(0.05, 0.2), requests, st.booleans(), st.floats(0.0, 3 * DEVICE), st.floats(0.5, 20.0))
def test_memory_stays_in_budget_busy_servers_stay_loaded_and_no_request_starves(
    memories: list[float],
    asleep_share: float,
    requests: list[tuple[float, str, float]],
    pin: bool,
    host: float,
    max_wait: float,
) -> None:
    profiles = [
        ServerProfile(
            key,
            memory / 2 if pin else memory,  # so that the others fit beside the pinned one
            pinned=pin and key == "a",
            sleeps=key != "b",
            asleep_memory=asleep_share * memory / (2 if pin else 1),
            host_memory=memory,
        )
        for key, memory in zip("abcde", memories, strict=True)
    ]
    simulation = Simulation(scheduler_of(profiles, memory=DEVICE, host_memory=host, max_wait=max_wait))
    simulation.run(requests)
    assert len(simulation.waits) == len(requests)
    turn = WORK + 2 * UNLOAD_SECONDS + LOAD_SECONDS
    assert all(wait <= max_wait + (len(profiles) + 1) * turn for wait in simulation.waits.values())


def test_one_request_is_served_under_endless_overload_by_others() -> None:
    simulation = Simulation(scheduler_of([ServerProfile(key, 10.0) for key in "abcde"], memory=10.0, max_wait=5.0))
    simulation.run([(20.0, "e", 1.0), *((0.1 * number, "abcd"[number % 4], 1.0) for number in range(3000))])
    assert simulation.waits[0] <= 60.0
