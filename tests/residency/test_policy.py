"""The scheduling policy: which server is loaded, which ones are evicted, which requests wait."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from coe.fleet.residency.policy import Action, DeviceState, ServerProfile, ServerState, plan
from tests.residency.simulation import LOAD_SECONDS, UNLOAD_SECONDS, Simulation, scheduler_of

A, B, C = (ServerProfile(key, 10.0) for key in "abc")
WORK = 4.0


def state(*servers: ServerState, memory: float = 10.0, host_memory: float = 0.0, now: float = 0.0) -> DeviceState:
    return DeviceState(now, memory, host_memory, 10.0, servers)


def orders(
    *servers: ServerState, memory: float = 10.0, host_memory: float = 0.0, now: float = 0.0
) -> list[tuple[str, str]]:
    decided = plan(state(*servers, memory=memory, host_memory=host_memory, now=now))
    return [(action.verb, action.key) for action in decided.actions]


def test_a_request_for_an_awake_server_is_admitted_at_once() -> None:
    assert plan(state(ServerState(A, "awake", waiting=(0.0, 0.0)))).actions == (Action("admit", "a", 2),)


def test_a_request_loads_its_server_if_memory_is_free() -> None:
    assert orders(ServerState(A, "awake", in_flight=3), ServerState(B, "stopped", waiting=(0.0,)), memory=20.0) == [
        ("load", "b")
    ]


def test_an_idle_server_of_less_demand_is_evicted() -> None:
    assert orders(ServerState(A, "awake"), ServerState(B, "stopped", waiting=(0.0,))) == [("stop", "a")]


def test_a_server_of_higher_forecast_demand_stays_until_the_other_is_overdue() -> None:
    popular = ServerState(A, "awake", rate=0.5)
    rare = ServerState(B, "stopped", waiting=(0.0,), load_seconds=2.0)
    assert plan(state(popular, rare)) == replace(plan(state(popular)), next_check=8.0)
    assert orders(popular, rare, now=8.0) == [("stop", "a")]


def test_waiting_requests_count_as_much_as_forecast_ones() -> None:
    rare = ServerState(B, "stopped", waiting=(0.0,) * 6)
    assert orders(ServerState(A, "awake", rate=0.25), rare) == [("stop", "a")]
    assert orders(ServerState(A, "awake", rate=0.35), rare) == []


def test_the_server_of_least_demand_is_evicted_and_ties_by_least_recent_use() -> None:
    wanted = ServerState(C, "stopped", waiting=(0.0,))
    assert orders(ServerState(A, "awake", rate=0.05), ServerState(B, "awake"), wanted, memory=20.0) == [("stop", "b")]
    older = ServerState(A, "awake", last_used=1.0), ServerState(B, "awake", last_used=2.0)
    assert orders(*older, wanted, memory=20.0) == [("stop", "a")]


def test_a_busy_server_is_drained_once_another_is_overdue() -> None:
    busy, due = ServerState(A, "awake", in_flight=1), ServerState(B, "stopped", waiting=(0.0,))
    assert orders(busy, due, now=1.0) == []
    assert orders(busy, due, now=9.0) == [("drain", "a")]
    draining = replace(busy, tier="draining", waiting=(5.0,))
    assert orders(draining, due, now=9.5) == []
    assert orders(replace(draining, in_flight=0), due, now=9.5) == [("stop", "a")]


def test_a_plan_does_not_unload_a_server_that_it_admits_requests_to() -> None:
    admits, due = ServerState(A, "awake", waiting=(0.0,)), ServerState(B, "stopped", waiting=(0.0,))
    assert orders(admits, due, now=9.0) == [("admit", "a"), ("drain", "a")]


def test_a_server_stopped_from_sleep_occupies_its_asleep_memory_only() -> None:
    sleeper = replace(A, sleeps=True, asleep_memory=2.0)
    assert state(ServerState(sleeper, "unloading", from_sleep=True)).free == 8.0
    assert state(ServerState(sleeper, "unloading")).free == 0.0
    scheduler = scheduler_of([sleeper, B], memory=11.0)
    scheduler.server_unloaded("a", "asleep")
    scheduler.request_arrived(1, "b", 0.0)
    scheduler.decide(0.0)
    assert scheduler.state(0.0).free == 9.0


def test_a_draining_server_resumes_if_its_memory_is_no_longer_needed() -> None:
    assert orders(ServerState(A, "draining", in_flight=1), ServerState(B, "stopped")) == [("resume", "a")]


def test_the_longest_overdue_server_is_loaded_first() -> None:
    early, late = ServerState(B, "stopped", waiting=(1.0,)), ServerState(C, "stopped", waiting=(2.0,) * 9)
    assert orders(late, early, now=20.0) == [("load", "b")]


def test_a_pinned_server_is_never_evicted() -> None:
    pinned = ServerState(replace(A, pinned=True), "awake")
    assert orders(pinned, ServerState(B, "stopped", waiting=(0.0,)), now=100.0) == []


def test_a_device_loads_one_server_at_a_time() -> None:
    assert orders(ServerState(A, "loading"), ServerState(B, "stopped", waiting=(0.0,)), memory=30.0) == []


def test_an_evicted_server_sleeps_if_ram_is_free_and_else_stops_with_a_less_used_sleeper() -> None:
    a, b, c = (replace(one, sleeps=True, host_memory=10.0) for one in (A, B, C))
    wanted = ServerState(b, "stopped", waiting=(0.0,) * 3)
    assert orders(ServerState(a, "awake"), wanted, host_memory=10.0) == [("sleep", "a")]
    leaves = ServerState(a, "awake", rate=0.1)
    assert orders(leaves, wanted, ServerState(c, "asleep"), host_memory=10.0) == [("stop", "a"), ("stop", "c")]
    assert orders(leaves, wanted, ServerState(c, "asleep", rate=0.2), host_memory=10.0) == [("stop", "a")]


def test_sleeping_servers_are_stopped_if_their_device_memory_is_needed() -> None:
    sleeper = ServerState(replace(A, sleeps=True, asleep_memory=2.0), "asleep")
    assert orders(sleeper, ServerState(B, "stopped", waiting=(0.0,)), memory=11.0) == [("stop", "a")]


def test_a_forecast_server_is_prefetched_but_not_in_place_of_one_of_similar_demand() -> None:
    assert orders(ServerState(A, "stopped", rate=0.2), ServerState(B, "stopped", rate=0.3), memory=20.0) == [
        ("load", "b")
    ]
    assert orders(ServerState(A, "awake", rate=0.2), ServerState(B, "stopped", rate=0.3)) == []
    assert orders(ServerState(A, "awake", rate=0.1), ServerState(B, "stopped", rate=0.3)) == [("stop", "a")]
    assert orders(ServerState(A, "stopped", rate=0.01)) == []


def test_a_server_whose_start_failed_is_not_loaded_before_its_retry_time() -> None:
    failed = ServerState(A, "stopped", waiting=(5.0,), retry_at=7.0)
    assert plan(state(failed, now=6.0)).next_check == 7.0
    assert orders(failed, now=6.0) == []
    assert orders(failed, now=7.0) == [("load", "a")]


def test_requests_answered_by_a_stand_in_count_as_demand() -> None:
    assert orders(ServerState(A, "awake"), ServerState(B, "stopped", redirected=1)) == [("stop", "a")]


keys = st.sampled_from("abcde")
requests = st.lists(st.tuples(st.floats(0.0, 60.0), keys, st.floats(0.01, WORK)), max_size=40)
sizes = st.lists(st.floats(1.0, 10.0), min_size=5, max_size=5)


@settings(max_examples=400, deadline=None)
@given(sizes, requests, st.booleans(), st.floats(0.0, 15.0), st.floats(0.5, 20.0))
def test_memory_stays_in_budget_busy_servers_stay_loaded_and_no_request_starves(
    memories: list[float], requests: list[tuple[float, str, float]], pin: bool, host: float, max_wait: float
) -> None:
    profiles = [
        ServerProfile(
            key, memory, pinned=pin and key == "a", sleeps=index % 2 == 0, asleep_memory=0.1, host_memory=memory
        )
        for index, (key, memory) in enumerate(zip("abcde", memories, strict=True))
    ]
    simulation = Simulation(scheduler_of(profiles, memory=21.0, host_memory=host, max_wait=max_wait))
    simulation.run(requests)
    assert len(simulation.waits) == len(requests)
    turn = WORK + 2 * UNLOAD_SECONDS + LOAD_SECONDS
    assert all(wait <= max_wait + (len(profiles) + 1) * turn for wait in simulation.waits.values())


def test_two_servers_that_share_a_device_do_not_evict_each_other_on_every_request() -> None:
    simulation = Simulation(scheduler_of([A, B], memory=10.0, max_wait=20.0))
    simulation.run([(0.5 * number, "ab"[number % 2], 0.1) for number in range(400)])
    assert sum(order.verb == "load" for order in simulation.orders) <= 30


def test_decisions_depend_on_time_differences_only() -> None:
    """Monotonic times may begin anywhere."""
    waits = []
    for begin in (0.0, 2.0**30):
        simulation = Simulation(scheduler_of([A, B], memory=10.0, now=begin))
        simulation.run([(begin + 1.0, "a", 1.0), (begin + 2.0, "b", 1.0), (begin + 3.0, "a", 1.0)])
        waits.append({ticket: round(wait, 3) for ticket, wait in simulation.waits.items()})
    assert waits[0] == waits[1]
