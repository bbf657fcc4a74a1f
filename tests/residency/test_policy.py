"""The scheduling policy: which server is loaded, which ones are evicted, which requests wait."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.fleet.residency.forecast import DecayingCounts, Forecast
from coe.fleet.residency.policy import PRICE, PRICE_LIMIT, plan
from coe.fleet.residency.state import Action, DeviceState, ServerProfile, ServerState
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
    """Offered load without the popular one: 0.5 x 2 s. Price: 10 x PRICE x 1 s of wait, of which the load is 2."""
    due = 10.0 * PRICE - 2.0
    assert plan(state(POPULAR, RARE)).next_check == pytest.approx(due)
    assert orders(POPULAR, RARE, now=due - 0.1) == []
    assert orders(POPULAR, RARE, now=due + 1e-6) == [("stop", "a")]


def test_a_request_never_gathers_others_for_longer_than_the_limit() -> None:
    most_popular, limit = replace(POPULAR, rate=50.0), PRICE_LIMIT * 10.0 - 2.0
    assert plan(state(most_popular, RARE)).next_check == pytest.approx(limit)
    assert orders(most_popular, RARE, now=limit + 1e-6) == [("stop", "a")]


def test_a_device_with_time_to_spare_loads_at_once() -> None:
    assert orders(replace(POPULAR, rate=0.24), RARE) == [("stop", "a")]
    assert orders(replace(POPULAR, rate=0.4), RARE) == []


def test_the_waits_of_all_requests_of_a_server_pay_for_its_load() -> None:
    assert orders(POPULAR, replace(RARE, waiting=(0.0,) * 2)) == []
    assert orders(POPULAR, replace(RARE, waiting=(0.0,) * 3)) == [("stop", "a")]


def test_the_check_of_a_load_is_not_later_than_it_is_due() -> None:
    """Between checks no other caller starts it."""
    waiting, now, checks = replace(RARE, waiting=(-1.0, 0.0, 0.0)), 0.0, 0
    dear = replace(POPULAR, rate=2.0)
    while not orders(dear, waiting, now=now):
        check = plan(state(dear, waiting, now=now)).next_check
        assert check is not None
        assert check > now
        assert orders(dear, waiting, now=check - 0.1) == []
        now, checks = check, checks + 1
    assert checks <= 10


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


def test_a_load_that_fits_beside_the_most_urgent_server_begins_while_that_one_waits_for_work_to_end() -> None:
    streams = ServerState(replace(A, memory=7.0), "awake", in_flight=1)
    first = ServerState(replace(B, memory=7.0), "stopped", waiting=(0.0,))
    small = ServerState(replace(C, memory=1.0), "stopped", waiting=(5.0,))
    assert orders(streams, first, small, now=9.0) == [("drain", "a"), ("load", "c")]
    draining = replace(streams, tier="draining")
    assert orders(draining, first, replace(small, profile=replace(C, memory=4.0)), now=9.0) == []
    loads = replace(small, tier="loading")
    assert orders(draining, first, loads, now=9.0) == []
    assert orders(streams, first, loads, now=9.0) == []
    assert orders(replace(draining, in_flight=0), first, loads, now=9.0) == [("stop", "a")]


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


def test_a_server_that_sleeps_in_ram_wakes_beside_a_start_if_idle_servers_leave_enough_memory() -> None:
    starts, in_ram = ServerState(A, "loading"), replace(C, sleeps=True, host_memory=10.0)
    sleeper, from_disk = ServerState(in_ram, "asleep", waiting=(5.0,)), ServerState(B, "stopped", waiting=(0.0,))
    assert orders(starts, sleeper, from_disk, memory=20.0, now=6.0) == [("load", "c")]
    assert orders(starts, replace(sleeper, profile=replace(C, sleeps=True)), memory=20.0, now=6.0) == []
    idle = ServerState(ServerProfile("d", 10.0), "awake")
    assert orders(starts, sleeper, idle, memory=20.0, now=6.0) == [("stop", "d")]
    assert orders(starts, sleeper, replace(idle, in_flight=1), memory=20.0, now=6.0) == []
    assert orders(replace(starts, from_sleep=True), sleeper, memory=20.0, now=6.0) == []
    assert (
        orders(starts, ServerState(ServerProfile("e", 1.0), "loading", from_sleep=True), from_disk, memory=30.0) == []
    )


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


def test_sleeping_servers_are_stopped_if_their_device_memory_is_needed_and_those_with_waiting_requests_last() -> None:
    sleeper = ServerState(replace(A, sleeps=True, asleep_memory=2.0), "asleep")
    asked = ServerState(replace(C, sleeps=True, asleep_memory=2.0), "asleep", waiting=(5.0,))
    most_urgent = ServerState(B, "stopped", waiting=(0.0,))
    assert orders(sleeper, most_urgent, memory=11.0) == [("stop", "a")]
    assert orders(sleeper, asked, most_urgent, memory=13.0) == [("stop", "a")]
    assert orders(asked, most_urgent, memory=11.0, now=5.0) == [("stop", "c")]
    assert orders(asked, most_urgent, memory=11.0, now=5.0, host_memory=50.0) == [("stop", "c")]


def test_a_sleeping_server_with_waiting_requests_leaves_for_the_most_urgent_server_only() -> None:
    loads = ServerState(ServerProfile("d", 10.0), "loading")
    asked = ServerState(replace(C, sleeps=True, asleep_memory=2.0), "asleep", waiting=(5.0,))
    assert orders(loads, asked, ServerState(B, "stopped", waiting=(0.0,)), memory=21.0, now=5.0) == []


def test_a_server_is_stopped_if_it_would_keep_too_much_asleep() -> None:
    a, b = (replace(one, memory=9.8, sleeps=True, asleep_memory=0.5, host_memory=9.8) for one in (A, B))
    wanted = ServerState(b, "stopped", waiting=(0.0,))
    assert orders(ServerState(a, "awake"), wanted, host_memory=50.0) == [("stop", "a")]
    assert orders(ServerState(a, "awake"), wanted, host_memory=50.0, memory=10.3) == [("sleep", "a")]


def test_only_as_many_servers_as_needed_are_stopped_where_they_could_sleep() -> None:
    a, c = (replace(one, memory=5.0, sleeps=True, asleep_memory=0.5, host_memory=5.0) for one in (A, C))
    awake = ServerState(a, "awake", last_used=1.0), ServerState(c, "awake", last_used=2.0)
    wanted = ServerState(replace(B, memory=9.5), "stopped", waiting=(0.0,))
    assert orders(*awake, wanted, host_memory=50.0) == [("stop", "a"), ("sleep", "c")]


@pytest.mark.parametrize("experts", [2, 4, 5])
def test_large_servers_that_sleep_take_turns(experts: int) -> None:
    """An expert loads although the memory that the others keep asleep exceeds what it leaves free."""
    profiles = [ServerProfile(key, 7.2, sleeps=True, asleep_memory=0.9, host_memory=7.2) for key in "abcde"[:experts]]
    simulation = Simulation(scheduler_of(profiles, memory=8.0, host_memory=100.0))
    simulation.run([(float(number), "abcde"[number % experts], 3.0) for number in range(40)])
    assert len(simulation.waits) == 40


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


DEVICE = 21.0
keys = st.sampled_from("abcde")
requests = st.lists(st.tuples(st.floats(0.0, 60.0), keys, st.floats(0.01, WORK)), max_size=40)
sizes = st.lists(st.floats(1.0, 0.95 * DEVICE), min_size=5, max_size=5)


@settings(max_examples=400)
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
    assert all(wait <= PRICE_LIMIT * max_wait + (len(profiles) + 1) * turn for wait in simulation.waits.values())


def test_one_request_is_served_under_endless_overload_by_others() -> None:
    simulation = Simulation(scheduler_of([ServerProfile(key, 10.0) for key in "abcde"], memory=10.0, max_wait=5.0))
    simulation.run([(20.0, "e", 1.0), *((0.1 * number, "abcd"[number % 4], 1.0) for number in range(3000))])
    assert simulation.waits[0] <= 60.0


def test_two_servers_that_share_a_device_do_not_evict_each_other_on_every_request() -> None:
    """The price is at its limit, 20 s. Requests a second apart pay it once the oldest is 8 to 9 s old when its server
    is awake (1.5-norm). Each server loads every 12 to 13 s: 34 loads in all. Without a price there are 78."""
    simulation = Simulation(scheduler_of([A, B], memory=10.0, max_wait=20.0))
    simulation.run([(0.5 * number, "ab"[number % 2], 0.1) for number in range(400)])
    assert sum(order.verb == "load" for order in simulation.orders) <= 36


def test_decisions_depend_on_time_differences_only() -> None:
    """Monotonic times may begin anywhere."""
    waits = []
    for begin in (0.0, 2.0**30):
        simulation = Simulation(scheduler_of([A, B], memory=10.0, now=begin))
        simulation.run([(begin + 1.0, "a", 1.0), (begin + 2.0, "b", 1.0), (begin + 3.0, "a", 1.0)])
        waits.append({ticket: round(wait, 3) for ticket, wait in simulation.waits.items()})
    assert waits[0] == waits[1]


def test_an_expert_in_its_first_burst_after_quiet_is_not_evicted_as_unused() -> None:
    scheduler = scheduler_of([A, B], memory=10.0)
    scheduler.server_loaded("a", 0.0)
    scheduler.decide(100.0)
    for ticket in range(50):
        scheduler.request_arrived(ticket, "a", 100.0 + ticket / 100)
        scheduler.request_ended(ticket, 100.0 + ticket / 100)
    scheduler.request_arrived(50, "b", 100.7)
    rate = scheduler._forecast.rates(100.7)["a"]
    assert scheduler.state(100.7).servers[0].rate == pytest.approx(rate, rel=0.05)
    assert scheduler.decide(100.7)[0] == []


def test_counts_decay_exponentially_for_months_and_not_while_the_clock_is_set_back() -> None:
    counts, times = DecayingCounts(120.0, at=0.0), [0.0, 100.0, 1e5, 1e5 + 50.0]
    for now in times:
        counts.add("a", now)
    counts.add("b", 1e5 + 60.0)
    now = 1e5 + 90.0
    exact = sum(math.exp((at - now) / 120.0) for at in times)
    assert counts.weights["a"] * counts.unit(now) == pytest.approx(exact)
    assert counts.weights["b"] * counts.unit(now) == pytest.approx(math.exp(-30.0 / 120.0))
    assert counts.weights["a"] * counts.unit(0.0) == pytest.approx(exact)
    assert counts.weights["a"] * counts.unit(120.0) == pytest.approx(exact / math.e)


def test_a_category_without_requests_for_months_does_not_disturb_the_forecast() -> None:
    forecast = Forecast({"x": "a"}, now=0.0)
    forecast.record("a", "x", 0.0)
    forecast.record("b", "y", 1e8)
    assert forecast.rates(1e8)["a"] == 0.0
    assert forecast.rates(1e8)["b"] > 0.0
