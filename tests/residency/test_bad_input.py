"""Times that lie, a clock that jumps, a device that has become smaller: bounded, reported, and no request is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.errors import ExpertAsleep
from coe.fleet.residency.forecast import Forecast
from coe.fleet.residency.load_times import MAX_SECONDS, LoadTimes
from coe.fleet.residency.policy import PRICE_LIMIT
from coe.fleet.residency.scheduler import Scheduler
from coe.fleet.residency.state import ServerProfile
from coe.registry import ExpertSpec
from tests.fleet.fake_fleet import Fakes
from tests.residency.shared_device import SharedDevice
from tests.residency.simulation import LOAD_SECONDS, UNLOAD_SECONDS, Simulation, scheduler_of
from tests.residency.test_residency import acquire, become

MAX_WAIT, WORK = 10.0, 4.0


def expert(name: str, **changes: Any) -> ExpertSpec:
    return ExpertSpec.model_validate({"name": name, "model": "org/small", "runtime": "vllm", **changes})


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(-1e7, 1e7)), min_size=1, max_size=10),
    st.lists(st.floats(0.0, 1e6), min_size=30, max_size=30),
)
def test_when_the_clock_jumps_every_request_is_admitted_and_load_times_stay_bounded(
    arrivals: list[tuple[str, float]], took: list[float]
) -> None:
    """Before each arrival the clock jumps; after the last one it runs as it should."""
    scheduler, now = scheduler_of([ServerProfile(key, 10.0) for key in "abc"], memory=10.0, max_wait=MAX_WAIT), 0.0
    waiting = set[int]()
    for ticket, (key, jump) in enumerate(arrivals):
        now += jump
        scheduler.request_arrived(ticket, key, now)
        waiting.add(ticket)
    began, loads = now, iter(took)
    while waiting:
        orders, admitted, next_check = scheduler.decide(now)
        for ticket in admitted:
            waiting.discard(ticket)
            scheduler.request_ended(ticket, now)
        for order in orders:
            before = scheduler.load_seconds(order.key)
            if order.verb == "load":
                scheduler.server_loaded(order.key, now + next(loads))  # the clock jumped during the load
                assert before / 4 <= scheduler.load_times(order.key)["stopped"] <= before * 4
            else:
                now += UNLOAD_SECONDS
                scheduler.server_unloaded(order.key, "stopped")
        if not orders and not admitted:
            assert next_check is not None, "requests wait for nothing"
            now = max(next_check, now)
    assert now - began <= len(arrivals) * (PRICE_LIMIT * MAX_WAIT + 100 * LOAD_SECONDS)


@settings(max_examples=60)
@given(
    st.lists(st.floats(0.001, MAX_SECONDS), min_size=3, max_size=3),
    st.lists(st.tuples(st.floats(0.0, 60.0), st.sampled_from("abc"), st.floats(0.01, WORK)), max_size=30),
)
def test_when_expected_load_times_lie_every_request_is_served_and_waits_stay_bounded(
    expected: list[float], requests: list[tuple[float, str, float]]
) -> None:
    """A load takes LOAD_SECONDS, whatever was expected. Each one serves all that wait for the server."""
    servers = [(ServerProfile(key, 10.0), seconds, seconds) for key, seconds in zip("abc", expected, strict=True)]
    scheduler = Scheduler(servers, memory=10.0, host_memory=0.0, max_wait=MAX_WAIT, forecast=Forecast({}, now=0.0))
    simulation = Simulation(scheduler)
    simulation.run(requests)
    assert len(simulation.waits) == len(requests)
    turns = (len(requests) + 1) * (WORK + UNLOAD_SECONDS + LOAD_SECONDS)
    assert all(wait <= PRICE_LIMIT * MAX_WAIT + turns for wait in simulation.waits.values())


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[1]",
        b'{"a": 5}',
        b'{"a": {"stopped": 8.0}}',
        b'{"a": {"server": "%s", "stopped": -1}}',
        b'{"a": {"server": "%s", "stopped": 1e9}}',
        b'{"a": {"server": "%s", "stopped": "soon", "awake": 3}}',
        b'{"a": {"server": "%s", "stopped": null, "asleep": 0}}',
    ],
)
def test_kept_load_times_that_are_not_plausible_are_ignored(tmp_path: Path, content: bytes) -> None:
    path, declared = tmp_path / "load-times.json", [expert("a")]
    LoadTimes(path, declared).record(["a"], "stopped", 8.0)
    server = orjson.loads(path.read_bytes())["a"]["server"]
    path.write_bytes(content.replace(b"%s", server.encode()))
    assert LoadTimes(path, declared).of("a") == {}


@pytest.mark.parametrize(
    "changed", [{"model": "org/large"}, {"runtime": "llama.cpp"}, {"options": {"n": 2}}, {"gpus": [1]}]
)
def test_load_times_of_another_declaration_are_not_used_and_those_of_removed_experts_dropped(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    path = tmp_path / "load-times.json"
    LoadTimes(path, [expert("a"), expert("b"), expert("c")]).record(["a", "b", "c"], "stopped", 8.0)
    kept = LoadTimes(path, [expert("a"), expert("b", **changed)])
    assert (kept.of("a"), kept.of("b"), kept.of("c")) == ({"stopped": 8.0}, {}, {})
    kept.record(["b"], "asleep", 2.0)
    written = orjson.loads(path.read_bytes())
    assert {name: set(times) for name, times in written.items()} == {
        "a": {"server", "stopped"},
        "b": {"server", "asleep"},
    }


def test_load_times_are_kept_by_tier_and_a_file_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    path, lines, declared = tmp_path / "home" / "load-times.json", list[str](), [expert("a"), expert("b")]
    LoadTimes(path, declared).record(["a", "b"], "stopped", 20.0)
    LoadTimes(path, declared).record(["a"], "asleep", 2.0)
    LoadTimes(path, declared).record(["a"], "stopped", MAX_SECONDS * 2)
    kept = LoadTimes(path, declared)
    assert (kept.of("a"), kept.of("b")) == ({"stopped": 20.0, "asleep": 2.0}, {"stopped": 20.0})
    path.unlink()
    path.mkdir()
    LoadTimes(path, declared, report=lines.append).record(["a"], "stopped", 20.0)
    assert any("load times cannot be kept" in line for line in lines)


@pytest.mark.anyio
async def test_on_a_device_that_has_become_smaller_what_still_fits_is_served(fakes: Fakes) -> None:
    """The second server does not start any more, as one whose memory another program has taken."""
    async with SharedDevice(fakes, {"a": "ok", "b": "dies"}, memory=10.0).connected() as (residency, client):
        for _ in range(2):
            with pytest.raises(ExpertAsleep) as refused:
                await acquire(client, "b")
            assert refused.value.retry_after
            await become(residency, b="stopped")
            (await acquire(client, "a"))()
