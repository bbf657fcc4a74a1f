"""Real processes that take turns: started, slept and stopped on demand, held for, and gone when their time is over."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from coe.errors import ExpertAsleep, FleetError
from coe.fleet.residency.client import ResidencyClient, connected_client, fetch_tiers
from coe.fleet.residency.residency import Residency
from tests.fleet.fake_fleet import DEADLINE, Fakes, ask
from tests.residency.house import House

pytestmark = pytest.mark.anyio


async def hold(
    turns: ResidencyClient, expert: str, *, within: float = DEADLINE, stand_in: str = ""
) -> Callable[[], None]:
    deadline = asyncio.get_running_loop().time() + within
    return await turns.hold(expert, category="x", deadline=deadline, stand_in=stand_in)


def tiers(residency: Residency) -> dict[str, str]:
    return {name: told["tier"] for name, told in residency.tiers().items()}


async def become(residency: Residency, **expected: str) -> None:
    async with asyncio.timeout(DEADLINE):
        while {name: tiers(residency)[name] for name in expected} != expected:
            await asyncio.sleep(0.01)


async def test_the_assigned_one_starts_first_and_another_is_started_when_it_is_asked_for(fakes: Fakes) -> None:
    async with House(fakes, {"a": "ok", "b": "ok"}).asked(first="b") as (residency, turns):
        assert tiers(residency) == {"a": "stopped", "b": "awake"}
        over = await hold(turns, "a")
        assert tiers(residency) == {"a": "awake", "b": "stopped"}
        assert len(fakes.alive()) == 1
        over()
        assert residency.tiers()["a"]["switches"] == 1


async def test_one_with_work_in_flight_stays_until_it_is_done(fakes: Fakes) -> None:
    async with House(fakes, {"a": "ok", "b": "ok"}).asked() as (residency, turns):
        over = await hold(turns, "a")
        waiting = asyncio.create_task(hold(turns, "b"))
        await become(residency, a="draining")
        newcomer = asyncio.create_task(hold(turns, "a"))
        over()
        (await waiting)()
        (await newcomer)()


async def test_one_that_sleeps_is_woken_without_a_start(fakes: Fakes) -> None:
    house = House(fakes, {"a": "ok", "b": "ok"}, sleepers="a")
    async with house.asked() as (residency, turns):
        (await hold(turns, "b"))()
        assert tiers(residency) == {"a": "asleep", "b": "awake"}
        (await hold(turns, "a"))()
    said = house.specs["a"].log.read_text()
    assert "/sleep?level=1&mode=wait\n" in said
    assert "/wake_up\n" in said
    assert len(fakes.pids()) == 2


async def test_one_that_cannot_sleep_is_stopped(fakes: Fakes) -> None:
    async with House(fakes, {"a": "sleepless", "b": "ok"}, sleepers="a").asked() as (residency, turns):
        (await hold(turns, "b"))()
        assert tiers(residency) == {"a": "stopped", "b": "awake"}
    assert any("does not sleep and is stopped" in line for line in fakes.lines)


async def test_a_hold_ends_at_its_deadline_with_the_time_to_come_again(fakes: Fakes) -> None:
    async with House(fakes, {"a": "ok", "b": "ok"}).asked() as (_, turns):
        over = await hold(turns, "a")
        with pytest.raises(ExpertAsleep, match="expert 'b' was not loaded in time") as caught:
            await hold(turns, "b", within=0.3)
        assert caught.value.retry_after
        over()
        (await hold(turns, "a"))()


async def test_without_time_only_one_that_is_awake_is_asked(fakes: Fakes) -> None:
    async with House(fakes, {"a": "ok", "b": "ok"}).asked() as (residency, turns):
        (await hold(turns, "a", within=0.0))()
        with pytest.raises(ExpertAsleep, match="expert 'b' is stopped and not waited for"):
            await hold(turns, "b", within=0.0)
        assert tiers(residency)["b"] == "stopped"


async def test_with_a_sibling_awake_nobody_waits_and_the_large_one_is_woken_all_the_same(fakes: Fakes) -> None:
    modes = {"small": "ok", "large": "ok", "other": "ok"}
    async with House(fakes, modes, memory=20.0).asked(first="small") as (residency, turns):
        (await hold(turns, "other"))()
        await become(residency, small="awake")
        with pytest.raises(ExpertAsleep):
            await hold(turns, "large", stand_in="small")
        await become(residency, large="awake")


async def test_what_a_killed_gateway_held_is_free_again(fakes: Fakes) -> None:
    async with House(fakes, {"a": "ok", "b": "ok"}).asked() as (_, turns):
        async with connected_client(turns._address) as other:
            await hold(other, "a")
        (await hold(turns, "b"))()


async def test_a_fleet_that_goes_is_told_to_those_who_wait_and_found_again(fakes: Fakes) -> None:
    house = House(fakes, {"a": "ok", "b": "ok"})
    async with connected_client(fakes.folder / "s") as turns:
        async with house.open():
            await hold(turns, "a")
            waiting = asyncio.create_task(hold(turns, "b"))
            await asyncio.sleep(0)
        with pytest.raises(ExpertAsleep, match="the fleet that should wake it has gone"):
            await waiting
        async with house.open():
            (await hold(turns, "b"))()


async def test_a_server_that_is_killed_is_started_again_when_it_is_asked_for(fakes: Fakes) -> None:
    async with House(fakes, {"a": "ok", "b": "ok"}).asked() as (residency, turns):
        os.kill(fakes.pids()[0], signal.SIGKILL)
        await become(residency, a="stopped")
        (await hold(turns, "a"))()
    assert any("'a' was killed by SIGKILL" in line for line in fakes.lines)


async def test_a_server_that_dies_at_start_refuses_who_waits_and_may_be_tried_later(fakes: Fakes) -> None:
    async with House(fakes, {"a": "ok", "b": "dies"}).asked() as (_, turns):
        with pytest.raises(ExpertAsleep, match="expert 'b' could not be woken: server 'b' exited with code 1"):
            await hold(turns, "b")
        (await hold(turns, "a"))()
    assert any("ValueError: no such weights" in line for line in fakes.lines)


async def test_one_that_dies_at_the_start_of_the_fleet_stops_it(fakes: Fakes) -> None:
    with pytest.raises(FleetError, match="'b' exited with code 1 before it was ready"):
        async with House(fakes, {"a": "ok", "b": "dies"}, memory=20.0).open():
            pass
    assert fakes.alive() == []


async def test_one_that_freezes_is_ended_and_started_again(fakes: Fakes) -> None:
    house = House(fakes, {"a": "ok"})
    async with house.asked() as (_, turns):
        await ask(house.specs["a"], "/freeze")
        await fakes.wait_for_line("health checks in a row")
        (await hold(turns, "a"))()


async def test_who_asks_for_the_tiers_gets_them(fakes: Fakes) -> None:
    async with House(fakes, {"a": "ok", "b": "ok"}).open() as (_, address):
        assert await fetch_tiers(address) == {
            "a": {"tier": "awake", "held": 0, "switches": 0},
            "b": {"tier": "stopped", "held": 0, "switches": 0},
        }
