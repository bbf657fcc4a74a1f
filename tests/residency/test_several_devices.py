"""Servers that may use several devices: on one at a time, within the memory of each, and no request is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.fleet.residency.forecast import Forecast
from coe.fleet.residency.placement import FAILED_DEVICE_SECONDS, Placement, load_cost, spread
from coe.fleet.residency.policy import PRICE_LIMIT
from coe.fleet.residency.scheduler import Scheduler
from coe.fleet.residency.simulation import SimulatedDevice, SimulatedRequest, SimulatedServer, Simulation
from coe.fleet.residency.state import DeviceState, ServerProfile, ServerState, Tier

A, B, C = (ServerProfile(key, 10.0) for key in "abc")
WORK, START, WAKE, UNLOAD = 4.0, 3.0, 1.0, 0.5
WANTED = ServerState(B, "stopped", waiting=(0.0,), load_seconds=2.0)


def state(*servers: ServerState, memory: float = 10.0) -> DeviceState:
    return DeviceState(0.0, memory, 0.0, 10.0, servers)


def test_a_device_with_free_memory_costs_less_than_one_where_a_server_leaves() -> None:
    free, idle = load_cost(WANTED, state()), load_cost(WANTED, state(ServerState(A, "awake", rate=0.1)))
    assert free == (2.0, 0.0)
    assert free < idle == (2.0, 0.1)


def test_the_price_of_a_load_counts_and_so_do_the_loads_before_it() -> None:
    popular = ServerState(A, "awake", rate=0.5, load_seconds=2.0)
    seconds, _ = load_cost(WANTED, state(popular))
    assert seconds == 3.8 - 2.0 + 2.0, "the rest of the price, and the load"
    loads = ServerState(C, "loading", load_seconds=7.0)
    urgent = ServerState(A, "stopped", waiting=(-5.0,), load_seconds=3.0)
    assert load_cost(WANTED, state(loads, urgent, memory=30.0))[0] == 7.0 + 3.0 + 2.0
    assert load_cost(WANTED, state(replace(urgent, waiting=(0.0,), load_seconds=1.0), memory=30.0))[0] == 2.0


def test_a_device_whose_servers_may_not_leave_costs_without_limit() -> None:
    pinned = ServerState(replace(A, pinned=True), "awake")
    assert load_cost(WANTED, state(pinned))[0] == float("inf")


def test_servers_are_spread_over_the_devices_and_as_many_as_fit_start() -> None:
    choices = {"a": [0, 1], "b": [0, 1], "c": [1], "d": [0, 1]}
    homes, awake = spread(dict.fromkeys("abcd", 10.0), choices, [10.0, 20.0])
    assert homes == {"a": 1, "b": 0, "c": 1, "d": 0}
    assert awake == ["a", "b", "c"]


def two_devices(*homes: Sequence[ServerProfile]) -> tuple[Placement, list[Scheduler]]:
    """Devices of 10 GB with servers that may use either."""
    forecast = Forecast({}, now=0.0)
    schedulers = [
        Scheduler(
            [(one, WAKE, START) for one in servers], memory=10.0, host_memory=50.0, max_wait=10.0, forecast=forecast
        )
        for servers in homes
    ]
    keys = [one.key for servers in homes for one in servers]
    return Placement(schedulers, dict.fromkeys(keys, range(len(homes)))), schedulers


def test_a_stopped_server_moves_to_the_device_that_is_free_with_its_requests() -> None:
    placement, (first, second) = two_devices((A, B), (C,))
    first.server_loaded("a", 0.0)
    first.request_arrived(1, "a", 0.0)
    first.decide(0.0)
    first.request_arrived(2, "b", 1.0)
    assert placement.settle(1.0) == {0, 1}
    assert placement.device("b") == 1
    assert [(order.verb, order.key) for order in second.decide(1.0)[0]] == [("load", "b")]
    second.server_loaded("b", 4.0)
    assert second.decide(4.0)[1] == [2]
    second.request_ended(2, 5.0)
    assert not second.state(5.0).servers[1].in_flight


def test_a_sleeping_server_wakes_where_it_sleeps_and_a_waiting_one_moves_for_a_second_at_least() -> None:
    cases: list[tuple[Tier, float, bool]] = [("asleep", 9.0, False), ("stopped", 9.0, True), ("stopped", 0.5, False)]
    for tier, saved, moves in cases:
        placement, (first, second) = two_devices((A, replace(B, sleeps=True, host_memory=10.0)), (C,))
        first.server_unloaded("b", tier)
        first._servers["a"].load_times["stopped"] = 9.0
        second._servers["c"].load_times["stopped"] = 9.0 - saved
        first.request_arrived(1, "a", 0.0)
        second.request_arrived(2, "c", 0.0)
        first.decide(0.0)
        second.decide(0.0)
        first.request_arrived(3, "b", 0.5)
        placement._considered["b"] = 0.0
        assert placement.settle(0.9) == set(), "its device is chosen again after a second"
        assert placement.settle(1.0) == ({0, 1} if moves else set()), (tier, saved)


def test_a_server_that_did_not_start_on_a_device_is_started_on_the_other_next() -> None:
    placement, (_, second) = two_devices((B,), (C,))
    second.server_loaded("c", 0.0)
    second.request_arrived(1, "c", 0.0)  # the second device is busy, so that the first one costs less
    second.decide(0.0)
    ticket, now, devices, others = 2, 0.0, list[int](), list[bool]()
    for _ in range(3):
        placement.scheduler("b").request_arrived(ticket, "b", now)
        placement.settle(now)
        devices.append(placement.device("b"))
        placement.scheduler("b").server_failed("b", retry_at=now + 1.0, refuse=True)
        others.append(placement.start_failed("b", now))
        ticket, now = ticket + 1, now + 2.0
    assert devices == [0, 1, 0]
    assert others == [True, False, True]
    placement.started("b")
    placement.scheduler("b").request_arrived(ticket, "b", now)
    assert placement.settle(now) == set()


class CheckedSimulation(Simulation):
    """Asserts after every decision what always holds."""

    def _carry_out(self, number: int, now: float) -> None:
        super()._carry_out(number, now)
        keys = [key for scheduler in self._schedulers for key in scheduler.keys]
        assert sorted(keys) == sorted(self._servers), "each server is on one device"
        for scheduler in self._schedulers:
            found = scheduler.state(now)
            assert sum(server.device_memory for server in found.servers) <= found.memory + 1e-9
            assert sum(s.profile.host_memory for s in found.servers if s.tier == "asleep") <= found.host_memory + 1e-9
            assert sum(server.tier == "loading" and server.from_sleep for server in found.servers) <= 1
            assert sum(server.tier == "loading" and not server.from_sleep for server in found.servers) <= 1
            assert all(s.tier in ("awake", "draining") for s in found.servers if s.in_flight or s.profile.pinned)


SIZES = (20.0, 12.0, 20.0)
KEYS = "abcdef"
requests = st.lists(st.tuples(st.floats(0.0, 60.0), st.sampled_from(KEYS), st.floats(0.01, WORK)), max_size=40)
choices = st.lists(st.sets(st.sampled_from([0, 1, 2]), min_size=1), min_size=6, max_size=6)


@settings(max_examples=200)
@given(
    st.lists(st.floats(1.0, 11.0), min_size=6, max_size=6),
    choices,
    requests,
    st.sampled_from(["", "a"]),
    st.floats(0.0, 40.0),
    st.floats(0.5, 20.0),
)
def test_memory_stays_in_budget_on_every_device_and_no_request_starves(
    memories: list[float],
    choices: list[set[int]],
    requests: list[tuple[float, str, float]],
    pinned: str,
    host: float,
    max_wait: float,
) -> None:
    servers = []
    for key, memory in zip(KEYS, memories, strict=True):
        size = memory / 2 if pinned else memory  # so that the others fit beside the pinned one
        profile = ServerProfile(
            key, size, pinned=key == pinned, sleeps=key != "b", asleep_memory=0.05 * size, host_memory=size
        )
        servers.append(SimulatedServer(profile, WAKE, START, UNLOAD, UNLOAD))
    placed = [{min(chosen)} if key == pinned else chosen for key, chosen in zip(KEYS, choices, strict=True)]
    devices = [
        SimulatedDevice(size, host, [one for one, chosen in zip(servers, placed, strict=True) if number in chosen])
        for number, size in enumerate(SIZES)
    ]
    trace = [SimulatedRequest(at, key, key, work) for at, key, work in sorted(requests)]
    simulation = CheckedSimulation(devices, trace, max_wait=max_wait, awake=pinned, slots=len(trace) + 1).run()
    turn = WORK + 2 * UNLOAD + START
    assert all(0.0 <= wait <= PRICE_LIMIT * max_wait + (len(servers) + 1) * turn for wait in simulation.granted)


@pytest.mark.parametrize("earlier", [(), range(101, 199, 20), range(101, 199)])
def test_a_server_that_sleeps_on_a_busy_device_starts_on_an_idle_one_once_its_requests_waited_as_long(
    earlier: Sequence[int],
) -> None:
    """The server that is awake on the first device works for 1,000 s, so the sleeping one cannot wake there. That on
    the other device may have had requests, so that it is missed once it leaves."""
    sleeper = replace(B, sleeps=True, host_memory=10.0)
    servers = [SimulatedServer(one, WAKE, START, UNLOAD, UNLOAD) for one in (A, sleeper)]
    idle = SimulatedServer(C, WAKE, START, UNLOAD, UNLOAD)
    devices = [SimulatedDevice(10.0, 50.0, servers), SimulatedDevice(10.0, 50.0, [servers[1], idle])]
    trace = [
        SimulatedRequest(0.0, "a", "", 1000.0),
        *(SimulatedRequest(at, "c", "c", 0.01) for at in earlier),
        SimulatedRequest(200.0, "b", "", 1.0),
    ]
    simulation = CheckedSimulation(devices, trace, max_wait=10.0, awake="ac")
    simulation._placement._homes["b"] = 0
    first, second = simulation._schedulers
    if "b" in second.keys:
        first.add(second.remove("b"))
    first.server_unloaded("b", "asleep")
    simulation.run()
    assert simulation.granted[-1] <= START + UNLOAD + UNLOAD + START + 2.0


def test_a_sleeping_server_stays_where_no_other_device_is_idle_with_enough_memory() -> None:
    for memory, waiting, moves in ((10.0, False, True), (9.0, False, False), (10.0, True, False)):
        forecast = Forecast({}, now=0.0)
        servers = [[replace(B, sleeps=True, host_memory=10.0), A], [C]]
        first, second = (
            Scheduler(
                [(one, WAKE, START) for one in here], memory=size, host_memory=50.0, max_wait=10.0, forecast=forecast
            )
            for here, size in zip(servers, (10.0, memory), strict=True)
        )
        placement = Placement([first, second], {"b": [0, 1]})
        first.server_loaded("a", 0.0)
        first.server_unloaded("b", "asleep")
        first.request_arrived(1, "b", 0.0)
        if waiting:
            second.request_arrived(2, "c", 0.0)
        assert placement.settle(START - 1.1) == set()
        assert placement.settle(START) == ({0} if moves else set()), (memory, waiting)
        assert [order.verb for order in first.decide(START)[0] if order.key == "b"] == (["stop"] if moves else [])


def test_a_device_where_a_server_does_not_start_is_avoided_for_ten_minutes_also_after_it_started_elsewhere() -> None:
    placement, (first, second) = two_devices((A, replace(B, sleeps=True, host_memory=10.0)), (C,))
    first.server_loaded("a", 0.0)
    first.request_arrived(1, "a", 0.0)
    first.decide(0.0)
    now, moved = 0.0, list[bool]()
    for ticket in (2, 3, 4):
        first.server_unloaded("b", "asleep")
        first.request_arrived(ticket, "b", now)
        moved.append(placement.settle(now + START) != set())
        if moved[-1]:
            first.decide(now + START)
            first.server_unloaded("b", "stopped")
            assert placement.settle(now + START) == {0, 1}
            assert placement.start_failed("b", now + START)
            second.server_failed("b", retry_at=now + START, refuse=False)
            first.add(second.remove("b"))
            placement._homes["b"] = 0
        placement.started("b")
        first.server_loaded("b", now + START)
        first.request_ended(ticket, now + START)
        now += FAILED_DEVICE_SECONDS / 2 + START
    assert moved == [True, False, True]
