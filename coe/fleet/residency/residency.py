"""Carries out who is awake: starts, wakes, puts to sleep and stops servers, and holds requests meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from coe.errors import FleetError
from coe.fleet import probe
from coe.fleet.fleet import to_the_end
from coe.fleet.residency.devices import Device, ScheduledServer
from coe.fleet.residency.forecast import Forecast
from coe.fleet.residency.managed_server import ManagedServer
from coe.fleet.residency.scheduler import Scheduler, Ticket
from coe.fleet.residency.state import Action
from coe.fleet.timeouts import Timeouts
from coe.supervision import log_failure


@dataclass(slots=True)
class _Held:
    """A request that waits: its expert, what to call when it may go ahead or may not, and its deadline."""

    expert: str
    granted: Callable[[], None]
    refused: Callable[[str, float], None]
    timer: asyncio.TimerHandle


class _MemoryAccount:
    """A floor with its books."""

    def __init__(self, floor: Device, ledger: Scheduler) -> None:
        self.floor, self.ledger = floor, ledger
        self.again: asyncio.TimerHandle | None = None


class Residency:
    """`async with Residency(...):` runs servers in turns for the length of the block, as Fleet runs them all at once.

    Entering starts the pinned ones, and of the others in the order of the assignment as many as fit, or raises
    FleetError. Inside, `hold` asks for an expert and `end` says that a request is over; both return at once, and the
    answer comes by a call. A server that dies is stopped and started again when it is asked for, after a pause that
    grows. All of it happens in one event loop; times are its clock's, which is monotonic. Leaving ends every process.
    """

    def __init__(
        self,
        floors: Sequence[Device],
        *,
        assignment: Mapping[str, str],
        max_wait: float,
        say: Callable[[str], None],
        pace: Timeouts | None = None,
    ) -> None:
        self._floors, self._assignment, self._max_wait = floors, assignment, max_wait
        self._say, self._pace = say, pace or Timeouts()
        self._levels: dict[str, _MemoryAccount] = {}
        self._tenants: dict[str, ManagedServer] = {}
        self._rooms: dict[str, str] = {}
        self._held: dict[Ticket, _Held] = {}
        self._level_of: dict[Ticket, _MemoryAccount] = {}
        self._tickets = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.changed: Callable[[], None] = lambda: None
        """Called whenever somebody's tier has changed."""

    # ------------------------------------------------------------------------------------------------ its life

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._session = probe.open_session()
        for floor in self._floors:
            self._open(floor)
        try:
            await self._start_first()
        except BaseException:
            await to_the_end(self._close())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await to_the_end(self._close())

    def _open(self, floor: Device) -> None:
        ours = {category: floor.experts[name] for category, name in self._assignment.items() if name in floor.experts}
        ledger = Scheduler(
            [(room.resident, *room.loads) for room in floor.rooms],
            memory=floor.memory,
            host_memory=floor.host_memory,
            max_wait=self._max_wait,
            forecast=Forecast(ours, now=self._loop.time()),
        )
        level = _MemoryAccount(floor, ledger)
        for room in floor.rooms:
            self._tenants[room.key] = ManagedServer(room, session=self._session, say=self._say, pace=self._pace)
            self._levels[room.key] = level
        self._rooms |= floor.experts

    async def _start_first(self) -> None:
        first = [room for floor in self._floors for room in self._first_of(floor)]
        try:
            async with asyncio.TaskGroup() as group:
                for room in first:
                    group.create_task(self._tenants[room.key].wake())
        except ExceptionGroup as failures:  # the first failure cancels the others
            raise failures.exceptions[0] from None
        for room in first:
            self._levels[room.key].ledger.woken(room.key, self._loop.time())
            self._tenants[room.key].watch(self._in_trouble)

    def _first_of(self, floor: Device) -> list[ScheduledServer]:
        assigned = [floor.experts[name] for name in dict.fromkeys(self._assignment.values()) if name in floor.experts]
        assigned += [floor.experts[name] for name in floor.experts]
        wanted = sorted(dict.fromkeys(assigned), key=lambda key: not self._tenants[key].room.resident.pinned)
        chosen, free = [], floor.memory
        for room in (self._tenants[key].room for key in wanted):
            if room.resident.memory <= free:
                free -= room.resident.memory
                chosen.append(room)
        return chosen

    async def _close(self) -> None:
        for level in self._levels.values():
            if level.again:
                level.again.cancel()
        for held in self._held.values():
            held.timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        stops = [tenant.aclose() for tenant in self._tenants.values()]
        outcomes = await asyncio.gather(*stops, return_exceptions=True)
        await self._session.close()
        for outcome in outcomes:  # raised last, so that one failure does not keep the others from being stopped
            if isinstance(outcome, Exception):
                raise outcome

    # ------------------------------------------------------------------------------------------------ requests

    def hold(
        self,
        expert: str,
        *,
        category: str,
        within: float,
        stand_in: str,
        granted: Callable[[], None],
        refused: Callable[[str, float], None],
    ) -> Ticket | None:
        """Ask for an expert: `granted` is called once it is awake, or `refused` with a reason and the seconds after
        which to try again, within `within` seconds; either may happen before this returns. With a `stand_in` that is
        awake the request is refused at once, and the expert is woken for the next one. `end` the ticket when it is
        over, in every case; there is none where the request was refused at once."""
        key = self._rooms.get(expert)
        if key is None:
            refused(f"expert {expert!r} is not among those that were started", 60.0)
            return None
        level, now = self._levels[key], self._loop.time()
        tier = level.ledger.tier(key)
        if tier != "awake" and (within <= 0 or self._is_awake(stand_in)):
            if within > 0:
                level.ledger.wished(key, now, category=category)
                self._look(level)
            refused(f"expert {expert!r} is {tier} and not waited for", level.ledger.wake_time(key))
            return None
        self._tickets += 1
        ticket = self._tickets
        timer = self._loop.call_later(max(within, 0.0), self._too_late, ticket)
        self._held[ticket] = _Held(expert, granted, refused, timer)
        self._level_of[ticket] = level
        level.ledger.arrived(ticket, key, now, category=category)
        self._look(level)
        return ticket

    def end(self, ticket: Ticket) -> None:
        """A request is over, or waits no longer."""
        if held := self._held.pop(ticket, None):
            held.timer.cancel()
        if level := self._level_of.pop(ticket, None):
            level.ledger.ended(ticket, self._loop.time())
            self._look(level)

    def _is_awake(self, expert: str) -> bool:
        key = self._rooms.get(expert)
        return key is not None and self._levels[key].ledger.tier(key) == "awake"

    def _too_late(self, ticket: Ticket) -> None:
        held = self._held[ticket]
        level = self._level_of[ticket]
        retry = level.ledger.wake_time(self._rooms[held.expert])
        self.end(ticket)
        held.refused(f"expert {held.expert!r} did not get its turn on the device in time", retry)

    def tiers(self) -> dict[str, dict[str, Any]]:
        """By expert: its `tier`, how many requests are `held`, and the `switches` of its server to awake."""
        return {expert: self._levels[key].ledger.told(key) for expert, key in self._rooms.items()}

    # ------------------------------------------------------------------------------------------------ orders

    def _look(self, level: _MemoryAccount) -> None:
        """Ask the policy, and do what it says."""
        if level.again:
            level.again.cancel()
            level.again = None
        orders, admitted, again_at = level.ledger.decide(self._loop.time())
        for order in orders:
            self._do(level, order)
        if again_at is not None:
            level.again = self._loop.call_at(again_at + 0.01, self._look, level)
        for ticket in admitted:
            held = self._held.pop(ticket)
            held.timer.cancel()
            held.granted()
        if orders:
            self.changed()

    def _do(self, level: _MemoryAccount, order: Action) -> None:
        tenant = self._tenants[order.key]
        work = self._wake(level, tenant) if order.verb == "wake" else self._rest(level, tenant, order.verb == "sleep")
        self._spawn(work)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(log_failure)
        return task

    async def _wake(self, level: _MemoryAccount, tenant: ManagedServer) -> None:
        try:
            await tenant.wake()
        except FleetError as error:
            await self._fell(level, tenant, f"could not be woken: {error}", refuse=True)
            return
        level.ledger.woken(tenant.key, self._loop.time())
        tenant.watch(self._in_trouble)
        self._look(level)
        self.changed()

    async def _rest(self, level: _MemoryAccount, tenant: ManagedServer, asleep: bool) -> None:
        tier = await tenant.rest(asleep=asleep)
        level.ledger.left(tenant.key, tier)
        self._look(level)
        self.changed()

    def _in_trouble(self, tenant: ManagedServer, trouble: str) -> None:
        level = self._levels[tenant.key]
        level.ledger.falls(tenant.key)
        self._spawn(self._fell(level, tenant, trouble, refuse=False))
        self.changed()

    async def _fell(self, level: _MemoryAccount, tenant: ManagedServer, trouble: str, *, refuse: bool) -> None:
        """A server is down: end what is left of it, and let it rest a while. Who waits for one that does not start is
        told so; who waits for one that died meanwhile waits for its return."""
        pause = await tenant.down(trouble)
        first = trouble.splitlines()[0]
        rests_until = self._loop.time() + pause
        for ticket in level.ledger.failed(tenant.key, rests_until=rests_until, refuse=refuse):
            held = self._held[ticket]
            self.end(ticket)
            held.refused(f"expert {held.expert!r} {first}", pause)
        self._look(level)
        self.changed()
