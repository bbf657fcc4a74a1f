"""Runs servers that share devices: loads and unloads them on demand; requests wait until their expert is awake.

Each device has its own Scheduler, which decides what to load. `Residency` carries out its orders, and connects it to
the clock, the processes and the waiting requests. `coe up` enters a `Residency` in place of a `Fleet` if experts.yaml
declares `residency`.

Explains one device to operators: which experts are awake, which are loading, which requests wait, and why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coe.errors import FleetError
from coe.fleet import probe
from coe.fleet.residency.managed_server import Device, ManagedServer
from coe.fleet.residency.policy import DeviceState, Scheduler, ServerState, Ticket, Tier
from coe.fleet.server import RunningServers, run_together
from coe.fleet.specs import Timeouts
from coe.supervision import log_failure


def device_report(name: str, device: DeviceState, experts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """One device as JSON, in GB and seconds. `experts` are the names behind each server."""
    return {
        "device": name,
        "memory_gb": device.memory,
        "occupied_gb": round(device.memory - device.free, 3),
        "host_memory_gb": device.host_memory,
        "host_occupied_gb": round(device.host_memory - device.host_free, 3),
        "servers": [{"experts": list(experts[one.key])} | _server(one, device) for one in device.servers],
    }


def _server(server: ServerState, device: DeviceState) -> dict[str, Any]:
    now, arrivals = device.now, list(server.waiting.values())
    return {
        "tier": server.tier,
        "memory_gb": server.profile.memory,
        "pinned": server.profile.pinned,
        "switches": server.switches,
        "in_flight": len(server.in_flight),
        "waiting": len(arrivals),
        "oldest_wait_s": round(now - arrivals[0], 3) if arrivals else None,
        "load_s": None if server.load_seconds is None else round(server.load_seconds, 3),
        "reason": _reason(server, device),
    }


def _reason(server: ServerState, device: DeviceState) -> str:
    """Return the reason why requests for the server wait; empty where none does."""
    if server.loading_since is not None:
        slept = "sleep" if server.from_sleep else "disk"
        return f"has been loading from {slept} for {device.now - server.loading_since:.1f} s"
    if not server.waiting and server.redirected is None:
        return ""
    if server.tier == "awake":
        return f"finishes its requests in flight ({len(server.in_flight)}) and leaves for an expert that waits longer"
    if server.tier == "unloading":
        return "is leaving; its requests wait until it can be loaded again"
    if server.retry_at > device.now:
        return f"failed and may start again in {server.retry_at - device.now:.1f} s"
    if any(other.tier in ("loading", "unloading") for other in device.servers):
        return "waits for its turn after the load under way"
    return f"waits until other experts are idle; after {device.max_wait:g} s they take no new requests"


_TIMER_SLACK = 0.01
"""Seconds added to the scheduler's next check, so that it is due when the timer fires."""
STAND_IN_SECONDS = 1.0
"""Seconds until a load begins that no request waits for: the request first reaches the stand-in, which may be idle."""
UNMEASURED_LOAD_SECONDS = 30.0
"""After so many seconds a refused client asks again for an expert that was never loaded."""


@dataclass(slots=True)
class _Request:
    """A request: its device and expert, the callbacks for its outcome, and its deadline."""

    schedule: _DeviceSchedule
    expert: str
    granted: Callable[[], None]
    refused: Callable[[str, float], None]
    timer: asyncio.TimerHandle


class _DeviceSchedule:
    """A device with its scheduler and the timer of its next check."""

    def __init__(self, device: Device, *, max_wait: float) -> None:
        self.device = device
        self.scheduler = Scheduler(
            [server.profile for server in device.servers],
            memory=device.memory,
            host_memory=device.host_memory,
            max_wait=max_wait,
        )
        self.next_check: asyncio.TimerHandle | None = None

    def state_of(self, expert: str) -> ServerState:
        return self.scheduler.servers[self.device.experts[expert]]


class Residency(RunningServers):
    """`async with Residency(...):` runs the servers of the devices for the length of the block.

    Entering starts the pinned servers and as many others as fit, those of the experts `first` before others, or raises
    FleetError. Inside, `acquire` requests an expert and `end` releases it; both return at once, and callbacks report
    the outcome. A failed server is stopped and starts again when it is requested, after a growing delay. Everything
    runs in one event loop and uses its clock. Leaving ends every process.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        *,
        first: Iterable[str],
        max_wait: float,
        report: Callable[[str], None],
        timeouts: Timeouts | None = None,
    ) -> None:
        self._first = tuple(first)
        self._report, self._timeouts = report, timeouts or Timeouts()
        self._schedules = [_DeviceSchedule(device, max_wait=max_wait) for device in devices]
        self._schedule_of = {expert: one for one in self._schedules for expert in one.device.experts}
        self._servers: dict[str, ManagedServer] = {}
        self._requests: dict[Ticket, _Request] = {}
        self._tickets = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_change: Callable[[bool], None] = lambda _tiers: None
        """Called with True after a server's tier has changed, with False when only waiting requests may have."""

    # ------------------------------------------------------------------------------------------------ start and stop

    async def _open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._session = probe.open_probe_session()
        for schedule in self._schedules:
            for server in schedule.device.servers:
                self._servers[server.key] = ManagedServer(
                    server, session=self._session, report=self._report, timeouts=self._timeouts
                )
        first = {key: schedule for schedule in self._schedules for key in self._fitting(schedule)}
        await run_together(self._servers[key].load() for key in first)
        for key, schedule in first.items():
            schedule.scheduler.server_loaded(key, self._loop.time())
            self._servers[key].watch(self._on_failure)

    def _fitting(self, schedule: _DeviceSchedule) -> list[str]:
        """The servers of a device that start at once: pinned ones, the first ones, and others, as many as fit."""
        experts, free = schedule.device.experts, schedule.device.memory
        named = dict.fromkeys([*(experts[name] for name in self._first if name in experts), *experts.values()])
        found = []
        for key in sorted(named, key=lambda key: not self._servers[key].profile.pinned):
            if (memory := self._servers[key].profile.memory) <= free:
                free -= memory
                found.append(key)
        return found

    async def _close(self) -> None:
        timers = [*(one.next_check for one in self._schedules), *(one.timer for one in self._requests.values())]
        for timer in timers:
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        stops = [server.aclose() for server in self._servers.values()]
        outcomes = await asyncio.gather(*stops, return_exceptions=True)
        await self._session.close()
        for outcome in outcomes:  # raised last, once all are stopped
            if isinstance(outcome, Exception):
                raise outcome

    # ------------------------------------------------------------------------------------------------ requests

    def acquire(
        self,
        expert: str,
        *,
        timeout: float,
        stand_in: str,
        granted: Callable[[], None],
        refused: Callable[[str, float], None],
    ) -> Ticket | None:
        """Requests an expert. Calls `granted` once it is awake, or `refused` with a reason and the seconds to wait
        before another attempt; one of them is called within `timeout` seconds, perhaps before this returns.

        If the expert `stand_in` is awake, the request is refused at once and the requested expert is loaded for the
        next one. Returns the ticket to `end` when the request is over, None for a request that was refused at once.
        """
        schedule = self._schedule_of.get(expert)
        if schedule is None:
            refused(f"expert {expert!r} is not among those that were started", 60.0)
            return None
        now, server = self._loop.time(), schedule.state_of(expert)
        redirected = self.tier(stand_in) == "awake"
        if server.tier != "awake" and (timeout <= 0 or redirected):
            if timeout > 0:
                schedule.scheduler.request_redirected(server.key, now)
                self._check_at(schedule, now + STAND_IN_SECONDS)
            refused(f"expert {expert!r} is {server.tier} and not waited for", _retry_after(server))
            return None
        self._tickets += 1
        ticket = self._tickets
        timer = self._loop.call_later(max(timeout, 0.0), self._on_timeout, ticket)
        self._requests[ticket] = _Request(schedule, expert, granted, refused, timer)
        schedule.scheduler.request_arrived(ticket, server.key, now)
        self._decide(schedule)
        return ticket

    def end(self, ticket: Ticket) -> None:
        """A request ended, or no longer waits."""
        if (request := self._requests.pop(ticket, None)) is not None:
            request.timer.cancel()
            request.schedule.scheduler.request_ended(ticket)
            self._decide(request.schedule)

    def _on_timeout(self, ticket: Ticket) -> None:
        request = self._requests[ticket]
        self.end(ticket)
        retry_after = _retry_after(request.schedule.state_of(request.expert))
        request.refused(f"expert {request.expert!r} was not loaded in time", retry_after)

    def tiers(self) -> dict[str, dict[str, Any]]:
        """By expert: its `tier`, the number of `waiting` requests, how often its server was loaded (`switches`), and
        its `device`, empty while it is stopped."""
        found = {}
        for expert, schedule in self._schedule_of.items():
            server = schedule.state_of(expert)
            device = "" if server.tier == "stopped" else schedule.device.name
            status = {"tier": server.tier, "waiting": len(server.waiting), "switches": server.switches}
            found[expert] = status | {"device": device}
        return found

    def tier(self, expert: str) -> Tier:
        """The tier of an expert; "stopped" for one that is not among those that were started."""
        schedule = self._schedule_of.get(expert)
        return "stopped" if schedule is None else schedule.state_of(expert).tier

    def report(self) -> list[dict[str, Any]]:
        """By device: its memory, and its servers with who waits and why (`device_report`)."""
        found = []
        for schedule in self._schedules:
            experts: dict[str, list[str]] = {}
            for expert, key in schedule.device.experts.items():
                experts.setdefault(key, []).append(expert)
            found.append(device_report(schedule.device.name, schedule.scheduler.state(self._loop.time()), experts))
        return found

    # ------------------------------------------------------------------------------------------------ orders

    def _decide(self, schedule: _DeviceSchedule) -> None:
        """Has the scheduler decide, and carries out its orders."""
        if schedule.next_check:
            schedule.next_check.cancel()
            schedule.next_check = None
        orders, admitted, next_check = schedule.scheduler.decide(self._loop.time())
        for order in orders:
            server = self._servers[order.key]
            if order.verb == "load":
                self._spawn(self._load(schedule, server))
            else:
                self._spawn(self._unload(schedule, server, sleep=order.verb == "sleep"))
        if next_check is not None:
            self._check_at(schedule, next_check + _TIMER_SLACK)
        for ticket in admitted:
            self._requests[ticket].timer.cancel()
            self._requests[ticket].granted()
        self.on_change(bool(orders))

    def _check_at(self, schedule: _DeviceSchedule, when: float) -> None:
        if schedule.next_check:
            schedule.next_check.cancel()
        schedule.next_check = self._loop.call_at(when, self._decide, schedule)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(log_failure)

    async def _load(self, schedule: _DeviceSchedule, server: ManagedServer) -> None:
        try:
            await server.load()
        except FleetError as error:
            await self._take_down(schedule, server, f"could not be woken: {error}", refuse=True)
            return
        schedule.scheduler.server_loaded(server.key, self._loop.time())
        server.watch(self._on_failure)
        self._decide(schedule)
        self.on_change(True)

    async def _unload(self, schedule: _DeviceSchedule, server: ManagedServer, *, sleep: bool) -> None:
        schedule.scheduler.server_unloaded(server.key, await server.unload(sleep=sleep))
        self._decide(schedule)
        self.on_change(True)

    def _on_failure(self, server: ManagedServer, failure: str) -> None:
        schedule = next(one for one in self._schedules if server.key in one.scheduler.servers)
        schedule.scheduler.server_failing(server.key)
        self._spawn(self._take_down(schedule, server, failure, refuse=False))
        self.on_change(True)

    async def _take_down(self, schedule: _DeviceSchedule, server: ManagedServer, failure: str, *, refuse: bool) -> None:
        """Ends a failed server and delays its next start. With `refuse` (it did not start) its waiting requests are
        refused; else (it died while awake) they wait until it is back."""
        delay = await server.take_down(failure)
        for ticket in schedule.scheduler.server_failed(server.key, retry_at=self._loop.time() + delay, refuse=refuse):
            request = self._requests[ticket]
            self.end(ticket)
            request.refused(f"expert {request.expert!r} {failure.splitlines()[0]}", delay)
        self._decide(schedule)
        self.on_change(True)


def _retry_after(server: ServerState) -> float:
    return UNMEASURED_LOAD_SECONDS if server.load_seconds is None else server.load_seconds
