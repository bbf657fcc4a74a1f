"""The scheduling policy: which server is loaded, which ones are evicted, which requests wait."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from coe.fleet.residency.policy import GATHER_LIMIT, Action, DeviceState, Schedule, ServerProfile, ServerState, plan
from tests.residency.simulation import LOAD_SECONDS, UNLOAD_SECONDS, Simulation, scheduler_of

A, B, C = (ServerProfile(key, 10.0) for key in "abc")
WORK = 4.0
POPULAR = ServerState(A, "awake", rate=0.5, load_seconds=2.0)
RARE = ServerState(B, "stopped", waiting=(0.0,), load_seconds=2.0)


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


def test_a_load_that_evicts_a_popular_server_waits_until_it_is_worth_its_price() -> None:
    """Offered load without the popular one: 0.5 x 2 s. Price: 10 x 0.4 x 1² = 4 s of wait, of which the load is 2."""
    assert plan(state(POPULAR, RARE)) == Schedule(next_check=2.0)
    assert orders(POPULAR, RARE, now=1.9) == []
    assert orders(POPULAR, RARE, now=2.0) == [("stop", "a")]


def test_a_request_never_gathers_others_for_longer_than_the_gather_limit() -> None:
    most_popular = replace(POPULAR, rate=50.0)
    assert plan(state(most_popular, RARE)).next_check == GATHER_LIMIT * 10.0 - 2.0
    assert orders(most_popular, RARE, now=GATHER_LIMIT * 10.0 - 2.0) == [("stop", "a")]


def test_the_waits_of_all_requests_of_a_server_pay_for_its_load() -> None:
    assert orders(POPULAR, replace(RARE, waiting=(0.0,) * 2)) == [("stop", "a")]


def test_the_server_of_least_demand_is_evicted_and_ties_by_least_recent_use() -> None:
    wanted = ServerState(C, "stopped", waiting=(0.0,))
    assert orders(ServerState(A, "awake", rate=0.05), ServerState(B, "awake"), wanted, memory=20.0) == [("stop", "b")]
    older = ServerState(A, "awake", last_used=1.0), ServerState(B, "awake", last_used=2.0)
    assert orders(*older, wanted, memory=20.0) == [("stop", "a")]


def test_a_busy_server_is_drained_once_the_load_is_worth_its_price() -> None:
    busy = replace(POPULAR, in_flight=1)
    assert orders(busy, RARE, now=1.0) == []
    assert orders(busy, RARE, now=9.0) == [("drain", "a")]
    draining = replace(busy, tier="draining", waiting=(5.0,))
    assert orders(draining, RARE, now=9.5) == []
    assert orders(replace(draining, in_flight=0), RARE, now=9.5) == [("stop", "a")]


def test_idle_servers_are_evicted_before_busy_ones() -> None:
    busy, idle = ServerState(A, "awake", in_flight=1, rate=0.1), ServerState(C, "awake", rate=0.2)
    assert orders(busy, idle, RARE, memory=20.0, now=9.0) == [("stop", "c")]


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


def test_the_most_urgent_server_is_loaded_first() -> None:
    """Urgency: the cubed waits, by load seconds."""
    early, late = ServerState(B, "stopped", waiting=(1.0,)), ServerState(C, "stopped", waiting=(2.0,))
    assert orders(late, early, now=20.0) == [("load", "b")]
    assert orders(replace(late, waiting=(2.0,) * 9), early, now=20.0) == [("load", "c")]
    assert orders(replace(late, waiting=(18.0,) * 9), early, now=20.0) == [("load", "b")]
    assert orders(late, replace(early, load_seconds=10.0), now=20.0) == [("load", "c")]


def test_a_pinned_server_is_never_evicted() -> None:
    pinned = ServerState(replace(A, pinned=True), "awake")
    assert orders(pinned, ServerState(B, "stopped", waiting=(0.0,)), now=100.0) == []


def test_a_device_loads_one_server_at_a_time_and_makes_room_for_the_next() -> None:
    wanted = ServerState(B, "stopped", waiting=(0.0,))
    assert orders(ServerState(A, "loading"), wanted, memory=30.0) == []
    assert orders(ServerState(A, "loading"), ServerState(C, "awake"), wanted, memory=20.0) == [("stop", "c")]


def test_a_server_that_the_device_cannot_hold_does_not_keep_others_from_loading() -> None:
    larger = ServerState(replace(A, memory=11.0), "stopped", waiting=(0.0,))
    assert orders(larger, RARE, now=20.0) == [("load", "b")]
    assert orders(larger, ServerState(C, "awake"), now=20.0) == []


def test_the_server_that_is_cheapest_to_have_back_is_evicted() -> None:
    slow = ServerState(A, "awake", rate=0.1, load_seconds=30.0)
    quick = ServerState(C, "awake", rate=0.2, load_seconds=0.1)
    assert orders(slow, quick, RARE, memory=20.0, now=20.0) == [("stop", "c")]


def test_load_times_are_learned_by_tier_and_one_outlier_is_bounded() -> None:
    scheduler = scheduler_of([replace(A, sleeps=True)], memory=10.0)
    for began, seconds in ((0.0, 4.0), (100.0, 86400.0), (1e6, -5.0)):
        before = scheduler.load_seconds("a")
        scheduler.request_arrived(1, "a", began)
        assert [order.verb for order in scheduler.decide(began)[0]] == ["load"]
        scheduler.server_loaded("a", began + seconds)
        scheduler.request_ended(1, began + seconds)
        scheduler.server_unloaded("a", "stopped")
        assert before / 4 <= scheduler.load_seconds("a") <= before * 4
    scheduler.server_unloaded("a", "asleep")
    assert scheduler.load_seconds("a") == LOAD_SECONDS


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


def test_a_forecast_server_is_prefetched_into_free_memory_only() -> None:
    assert orders(ServerState(A, "stopped", rate=0.2), ServerState(B, "stopped", rate=0.3), memory=20.0) == [
        ("load", "b")
    ]
    assert orders(ServerState(A, "awake"), ServerState(B, "stopped", rate=0.3)) == []
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
    assert all(wait <= GATHER_LIMIT * max_wait + (len(profiles) + 1) * turn for wait in simulation.waits.values())


def test_one_request_is_served_under_endless_overload_by_others() -> None:
    simulation = Simulation(scheduler_of([ServerProfile(key, 10.0) for key in "abcde"], memory=10.0, max_wait=5.0))
    simulation.run([(20.0, "e", 1.0), *((0.1 * number, "abcd"[number % 4], 1.0) for number in range(3000))])
    assert simulation.waits[0] <= 60.0


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
