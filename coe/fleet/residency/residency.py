"""Runs servers that share devices: loads and unloads them on demand; requests wait until their expert is awake.

Each device has its own Scheduler, which decides what to load; `Placement` moves servers that may use several devices.
`Residency` carries out its orders, and connects it to
the clock, the processes and the waiting requests. `coe up` enters a `Residency` in place of a `Fleet` if experts.yaml
declares `residency`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coe.errors import FleetError
from coe.fleet import probe
from coe.fleet.fleet import RunningServers, run_together
from coe.fleet.residency.devices import Device, ScheduledServer
from coe.fleet.residency.forecast import Forecast
from coe.fleet.residency.load_times import LoadTimes
from coe.fleet.residency.managed_server import ManagedServer
from coe.fleet.residency.placement import Placement, device_choices, spread
from coe.fleet.residency.report import device_report
from coe.fleet.residency.scheduler import Scheduler, Ticket
from coe.fleet.residency.state import Tier
from coe.fleet.specs import Timeouts
from coe.supervision import log_failure

_TIMER_SLACK = 0.01
"""Seconds added to the scheduler's next check, so that it is due when the timer fires."""


@dataclass(slots=True)
class _WaitingRequest:
    """A waiting request: its expert, the callbacks for its outcome, and its deadline."""

    expert: str
    granted: Callable[[], None]
    refused: Callable[[str, float], None]
    timer: asyncio.TimerHandle


class _DeviceSchedule:
    """A device with its number, its scheduler and the timer of its next check."""

    def __init__(self, number: int, device: Device, scheduler: Scheduler) -> None:
        self.number = number
        self.device = device
        self.specs = {server.key: server.spec for server in device.servers}
        self.scheduler = scheduler
        self.next_check: asyncio.TimerHandle | None = None


class Residency(RunningServers):
    """`async with Residency(...):` runs the servers of the devices for the length of the block.

    Entering starts the pinned servers and, in the order of the assignment, as many others as fit, or raises FleetError.
    Inside, `acquire` requests an expert and `end` releases it; both return at once, and callbacks report the outcome. A
    failed server is stopped and starts again when it is requested, after a growing delay. Everything runs in one event
    loop and uses its clock. Leaving ends every process.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        *,
        assignment: Mapping[str, str],
        max_wait: float,
        report: Callable[[str], None],
        timeouts: Timeouts | None = None,
        load_times: LoadTimes | None = None,
    ) -> None:
        """`load_times` keeps what loads took, for the next start and for `coe plan`."""
        self._devices, self._assignment, self._max_wait = devices, assignment, max_wait
        self._report, self._timeouts = report, timeouts or Timeouts()
        self._load_times = load_times
        self._by_device: list[_DeviceSchedule] = []
        self._servers: dict[str, ManagedServer] = {}
        self._server_of: dict[str, str] = {}
        self._waiting: dict[Ticket, _WaitingRequest] = {}
        self._key_of: dict[Ticket, str] = {}
        self._tickets = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_change: Callable[[bool], None] = lambda _tiers: None
        """Called with True after a server's tier has changed, with False when only waiting requests may have."""

    # ------------------------------------------------------------------------------------------------ start and stop

    async def _open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._session = probe.open_probe_session()
        await self._start_first(self._place())

    def _place(self) -> list[ManagedServer]:
        """Sets up the devices; returns the first servers: pinned ones, then assigned ones, then others in the order of
        the declaration, as many as fit."""
        for device in self._devices:
            self._server_of |= device.experts
        scheduled = {server.key: server for device in self._devices for server in device.servers}
        names = dict.fromkeys([*self._assignment.values(), *self._server_of])
        keys = dict.fromkeys(self._server_of[name] for name in names if name in self._server_of)
        order = sorted(keys, key=lambda key: not scheduled[key].profile.pinned)
        choices = device_choices([server.key for server in device.servers] for device in self._devices)
        sizes = {key: scheduled[key].profile.memory for key in order}
        homes, first = spread(sizes, choices, [device.memory for device in self._devices])
        assigned = {c: self._server_of[name] for c, name in self._assignment.items() if name in self._server_of}
        forecast = Forecast(assigned, now=self._loop.time())
        for number, device in enumerate(self._devices):
            here = [server for server in device.servers if homes[server.key] == number]
            self._by_device.append(_DeviceSchedule(number, device, self._scheduler(device, here, forecast)))
        self._placement = Placement([one.scheduler for one in self._by_device], choices)
        for key, server in scheduled.items():
            self._servers[key] = ManagedServer(
                server, session=self._session, report=self._report, timeouts=self._timeouts
            )
        return [self._servers[key] for key in first]

    def _scheduler(self, device: Device, servers: Sequence[ScheduledServer], forecast: Forecast) -> Scheduler:
        return Scheduler(
            [(server.profile, *server.load_times) for server in servers],
            memory=device.memory,
            host_memory=device.host_memory,
            max_wait=self._max_wait,
            forecast=forecast,
        )

    def _schedule(self, key: str) -> _DeviceSchedule:
        """The schedule of the device that a server is on."""
        return self._by_device[self._placement.device(key)]

    async def _start_first(self, first: Sequence[ManagedServer]) -> None:
        for server in first:
            server.use(self._schedule(server.key).specs[server.key])
        await run_together(server.load() for server in first)
        for server in first:
            self._schedule(server.key).scheduler.server_loaded(server.key, self._loop.time())
            server.watch(self._on_failure)

    async def _close(self) -> None:
        for schedule in self._by_device:
            if schedule.next_check:
                schedule.next_check.cancel()
        for request in self._waiting.values():
            request.timer.cancel()
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
        category: str,
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
        key = self._server_of.get(expert)
        if key is None:
            refused(f"expert {expert!r} is not among those that were started", 60.0)
            return None
        schedule, now = self._schedule(key), self._loop.time()
        scheduler, tier = schedule.scheduler, schedule.scheduler.tier(key)
        other = self._server_of.get(stand_in)
        answers_instead = other is not None and self._schedule(other).scheduler.tier(other) == "awake"
        if tier != "awake" and (timeout <= 0 or answers_instead):
            if timeout > 0:
                scheduler.request_redirected(key, now, category=category)
                self._decide(schedule)  # the server may now belong to another device
            retry_after = self._schedule(key).scheduler.load_seconds(key)
            refused(f"expert {expert!r} is {tier} and not waited for", retry_after)
            return None
        self._tickets += 1
        ticket = self._tickets
        timer = self._loop.call_later(max(timeout, 0.0), self._on_timeout, ticket)
        self._waiting[ticket] = _WaitingRequest(expert, granted, refused, timer)
        self._key_of[ticket] = key
        scheduler.request_arrived(ticket, key, now, category=category)
        self._decide(schedule)
        return ticket

    def end(self, ticket: Ticket) -> None:
        """A request ended, or no longer waits."""
        if request := self._waiting.pop(ticket, None):
            request.timer.cancel()
        if key := self._key_of.pop(ticket, None):
            schedule = self._schedule(key)
            schedule.scheduler.request_ended(ticket, self._loop.time())
            self._decide(schedule)

    def _on_timeout(self, ticket: Ticket) -> None:
        request = self._waiting[ticket]
        key = self._server_of[request.expert]
        retry_after = self._schedule(key).scheduler.load_seconds(key)
        self.end(ticket)
        request.refused(f"expert {request.expert!r} was not loaded in time", retry_after)

    def tiers(self) -> dict[str, dict[str, Any]]:
        """By expert: its `tier`, the number of `waiting` requests, how often its server was loaded (`switches`), and
        its `device`, empty while it is stopped."""
        found = {}
        for expert, key in self._server_of.items():
            schedule = self._schedule(key)
            status = schedule.scheduler.status(key)
            found[expert] = status | {"device": "" if status["tier"] == "stopped" else schedule.device.name}
        return found

    def tier(self, expert: str) -> Tier:
        """The tier of an expert; "stopped" for one that is not among those that were started."""
        key = self._server_of.get(expert)
        return "stopped" if key is None else self._schedule(key).scheduler.tier(key)

    def report(self) -> list[dict[str, Any]]:
        """By device: its memory, its servers with who waits and why, and the next decision (`device_report`)."""
        now, found = self._loop.time(), []
        for schedule in self._by_device:
            scheduler = schedule.scheduler
            experts: dict[str, list[str]] = {key: [] for key in scheduler.keys}
            for expert, key in schedule.device.experts.items():
                if key in experts:
                    experts[key].append(expert)
            switches = {key: scheduler.status(key)["switches"] for key in experts}
            one = device_report(scheduler.state(now), scheduler.loading(), experts=experts, switches=switches)
            for key, server in zip(scheduler.keys, one["servers"], strict=True):
                server["devices"] = [other.device.name for other in self._by_device if key in other.specs]
            found.append({"device": schedule.device.name} | one)
        return found

    # ------------------------------------------------------------------------------------------------ orders

    def _decide(self, schedule: _DeviceSchedule) -> None:
        """Has the device decide, and those that a server leaves or comes to."""
        for number in sorted({schedule.number} | self._placement.settle(self._loop.time())):
            self._decide_device(self._by_device[number])

    def _decide_device(self, schedule: _DeviceSchedule) -> None:
        """Has the scheduler decide, and carries out its orders."""
        if schedule.next_check:
            schedule.next_check.cancel()
            schedule.next_check = None
        now = self._loop.time()
        orders, admitted, next_check = schedule.scheduler.decide(now)
        next_check = self._placement.next_check(schedule.number, next_check, now)
        for order in orders:
            server = self._servers[order.key]
            if order.verb == "load":
                server.use(schedule.specs[order.key])
                self._spawn(self._load(schedule, server))
            else:
                self._spawn(self._unload(schedule, server, sleep=order.verb == "sleep"))
        if next_check is not None:
            schedule.next_check = self._loop.call_at(next_check + _TIMER_SLACK, self._decide, schedule)
        for ticket in admitted:
            request = self._waiting.pop(ticket)
            request.timer.cancel()
            request.granted()
        self.on_change(bool(orders))

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
        self._placement.started(server.key)
        began = {one.key: one.tier for one in schedule.scheduler.loading()}
        schedule.scheduler.server_loaded(server.key, self._loop.time())
        self._keep_load_time(schedule, server.key, began[server.key])
        server.watch(self._on_failure)
        self._decide(schedule)
        self.on_change(True)

    def _keep_load_time(self, schedule: _DeviceSchedule, key: str, tier: Tier) -> None:
        """Keeps the learned time, since a single one may be an accident."""
        if self._load_times is not None:
            experts = [name for name, server in schedule.device.experts.items() if server == key]
            self._load_times.record(experts, tier, schedule.scheduler.load_times(key)[tier])

    async def _unload(self, schedule: _DeviceSchedule, server: ManagedServer, *, sleep: bool) -> None:
        tier = await server.unload(sleep=sleep)
        schedule.scheduler.server_unloaded(server.key, tier)
        self._decide(schedule)
        self.on_change(True)

    def _on_failure(self, server: ManagedServer, failure: str) -> None:
        schedule = self._schedule(server.key)
        schedule.scheduler.server_failing(server.key)
        self._spawn(self._take_down(schedule, server, failure, refuse=False))
        self.on_change(True)

    async def _take_down(self, schedule: _DeviceSchedule, server: ManagedServer, failure: str, *, refuse: bool) -> None:
        """Ends a failed server and delays its next start. With `refuse` (it did not start) its waiting requests are
        refused, unless it may start on another device; else (it died while awake) they wait until it is back."""
        delay = await server.take_down(failure)
        if refuse:
            refuse = not self._placement.start_failed(server.key, self._loop.time())
        for ticket in schedule.scheduler.server_failed(server.key, retry_at=self._loop.time() + delay, refuse=refuse):
            request = self._waiting[ticket]
            self.end(ticket)
            request.refused(f"expert {request.expert!r} {failure.splitlines()[0]}", delay)
        self._decide(schedule)
        self.on_change(True)
