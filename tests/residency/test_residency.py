"""Real processes that share a device: started, put to sleep and stopped on demand, and ended at the end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from coe.errors import ExpertAsleep, FleetError
from coe.fleet.residency.client import ResidencyClient, connected_client, fetch_report
from coe.fleet.residency.residency import Residency
from tests.fleet.fake_fleet import DEADLINE, QUICK, Fakes, send_chat
from tests.residency.shared_device import SharedDevice

pytestmark = pytest.mark.anyio


async def acquire(
    client: ResidencyClient, expert: str, *, within: float = DEADLINE, stand_in: str = ""
) -> Callable[[], None]:
    deadline = asyncio.get_running_loop().time() + within
    return await client.acquire(expert, deadline=deadline, stand_in=stand_in)


def tiers(residency: Residency) -> dict[str, str]:
    return {name: state["tier"] for name, state in residency.tiers().items()}


async def become(residency: Residency, **expected: str) -> None:
    async with asyncio.timeout(DEADLINE):
        while {name: tiers(residency)[name] for name in expected} != expected:
            await asyncio.sleep(0.01)


async def test_the_assigned_server_starts_first_and_another_starts_on_request(fakes: Fakes) -> None:
    async with SharedDevice(fakes, {"a": "ok", "b": "ok"}).connected(first="b") as (residency, client):
        assert tiers(residency) == {"a": "stopped", "b": "awake"}
        release = await acquire(client, "a")
        assert tiers(residency) == {"a": "awake", "b": "stopped"}
        assert len(fakes.alive()) == 1
        release()
        assert residency.tiers()["a"]["switches"] == 1


async def test_a_server_with_requests_in_flight_is_not_unloaded(fakes: Fakes) -> None:
    async with SharedDevice(fakes, {"a": "ok", "b": "ok"}).connected() as (residency, client):
        release = await acquire(client, "a")
        waiting = asyncio.create_task(acquire(client, "b"))
        await asyncio.sleep(0.3)  # longer than max_wait
        newcomer = asyncio.create_task(acquire(client, "a"))
        async with asyncio.timeout(DEADLINE):
            while not residency.tiers()["a"]["waiting"]:
                await asyncio.sleep(0.01)
        assert not waiting.done()
        assert tiers(residency)["a"] == "awake"
        release()
        (await waiting)()
        (await newcomer)()


async def test_a_sleeping_server_is_woken_without_a_restart(fakes: Fakes) -> None:
    device = SharedDevice(fakes, {"a": "ok", "b": "ok"}, sleepers="a")
    async with device.connected() as (residency, client):
        (await acquire(client, "b"))()
        assert tiers(residency) == {"a": "asleep", "b": "awake"}
        (await acquire(client, "a"))()
    log = device.specs["a"].log.read_text()
    assert "/sleep?level=1&mode=wait\n" in log
    assert "/wake_up\n" in log
    assert len(fakes.pids()) == 2


async def test_a_hold_ends_at_its_deadline_with_a_retry_after(fakes: Fakes) -> None:
    async with SharedDevice(fakes, {"a": "ok", "b": "ok"}).connected() as (_, client):
        release = await acquire(client, "a")
        with pytest.raises(ExpertAsleep, match="expert 'b' was not loaded in time") as caught:
            await acquire(client, "b", within=0.3)
        assert caught.value.retry_after
        release()
        (await acquire(client, "a"))()


async def test_holds_of_a_killed_gateway_are_released(fakes: Fakes) -> None:
    async with SharedDevice(fakes, {"a": "ok", "b": "ok"}).connected() as (residency, client):
        async with connected_client(client._address) as other:
            await acquire(other, "a")
        (await acquire(client, "b"))()
        assert tiers(residency) == {"a": "stopped", "b": "awake"}


async def test_waiting_clients_learn_that_the_fleet_stopped_and_reconnect_later(fakes: Fakes) -> None:
    device = SharedDevice(fakes, {"a": "ok", "b": "ok"})
    async with connected_client(fakes.folder / "s") as client:
        async with device.open():
            await acquire(client, "a")
            waiting = asyncio.create_task(acquire(client, "b"))
            await asyncio.sleep(0)
        with pytest.raises(ExpertAsleep, match="the fleet that should wake it has gone"):
            await waiting
        async with device.open():
            (await acquire(client, "b"))()


async def test_a_server_killed_while_it_loads_refuses_its_requests_and_no_other(fakes: Fakes) -> None:
    async with SharedDevice(fakes, {"a": "ok", "c": "loading"}).connected() as (residency, client):

        async def use(name: str) -> None:
            (await acquire(client, name))()

        started = fakes.folder / "c.pids"
        waiting = asyncio.create_task(acquire(client, "c"))
        await become(residency, c="loading")
        other = asyncio.create_task(use("a"))
        async with asyncio.timeout(DEADLINE):
            while not started.exists() or not (pids := started.read_text().split()):
                await asyncio.sleep(0.01)
        os.kill(int(pids[0]), signal.SIGKILL)
        with pytest.raises(ExpertAsleep, match="expert 'c' could not be woken: server 'c' was killed by SIGKILL"):
            await waiting
        await other
        await become(residency, c="stopped")


async def test_a_server_that_dies_at_the_start_of_the_fleet_stops_it(fakes: Fakes) -> None:
    with pytest.raises(FleetError, match="'b' exited with code 1 before it was ready"):
        async with SharedDevice(fakes, {"a": "ok", "b": "dies"}, memory=20.0).open():
            pass
    assert fakes.alive() == []


async def test_a_frozen_server_is_ended_and_started_again(fakes: Fakes) -> None:
    device = SharedDevice(fakes, {"a": "ok"}, timeouts=replace(QUICK, max_missed_checks=2))
    async with device.connected() as (_, client):
        await send_chat(device.specs["a"], "/freeze")
        await fakes.wait_for_line("health checks in a row")
        (await acquire(client, "a"))()
        _, restarted = fakes.pids()
        assert fakes.alive() == [restarted]


async def test_the_report_shows_who_waits_and_loads(fakes: Fakes) -> None:
    async with (
        SharedDevice(fakes, {"a": "ok", "b": "ok"}).open() as (residency, address),
        connected_client(address) as client,
    ):
        release = await acquire(client, "a")
        waiting = asyncio.create_task(acquire(client, "b"))
        async with asyncio.timeout(DEADLINE):
            while not residency.tiers()["b"]["waiting"]:
                await asyncio.sleep(0.01)
        (device,) = await fetch_report(address)
        (for_gateway,) = await client.report()
        assert all(found == {**found, "device": "d", "occupied_gb": 10.0} for found in (device, for_gateway))
        a, b = device["servers"]
        assert (a["in_flight"], a["reason"], b["waiting"]) == (1, "", 1)
        assert b["reason"] == "waits until other experts are idle; after 0.2 s they take no new requests"
        assert b["oldest_wait_s"] > 0
        release()
        await become(residency, b="loading")
        (device,) = residency.report()  # at once, before it is loaded
        assert device["servers"][1]["reason"].startswith("has been loading from disk for ")
        (await waiting)()
        assert residency.report()[0]["servers"][1]["load_s"] > 0


async def test_a_scheduler_that_closes_the_connection_is_no_empty_report(tmp_path: Path) -> None:
    def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    address = tmp_path / "s"
    async with await asyncio.start_unix_server(close, address):
        with pytest.raises(ConnectionResetError, match="closed without a report"):
            await fetch_report(address)
        with pytest.raises(ExpertAsleep, match="does not answer"):
            await ResidencyClient(address).report()


async def test_waits_are_reported_by_the_tier_at_arrival_and_their_outcome(fakes: Fakes) -> None:
    waits: list[tuple[str, str, str]] = []
    async with SharedDevice(fakes, {"a": "ok", "b": "ok"}).connected() as (_, client):
        client.on_wait = lambda expert, tier, outcome, _: waits.append((expert, tier, outcome))
        release = await acquire(client, "a")
        with pytest.raises(ExpertAsleep):
            await acquire(client, "b", within=0.3)
        release()
        (await acquire(client, "b"))()
    assert waits == [("a", "awake", "granted"), ("b", "stopped", "refused"), ("b", "stopped", "granted")]
