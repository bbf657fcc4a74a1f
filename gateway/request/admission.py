"""How many requests one process works on at a time: a permit is held from the last byte of the body to the last of the
answer, and who must wait for one is served in turn with the other callers.

Places that callers share, none of which is kept for anybody.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from types import TracebackType
from typing import Self

from coe.errors import BodyMemoryFull, Draining, Overloaded
from coe.registry import Limits
from gateway.request.cancellation import Cancellation


class FairShares:
    """How many places each caller has taken. It may have as many as are still free: alone half of them, two a third
    each. One that takes all it may leaves another half of what it found; none are left once as many do so as the places
    can be halved, eight for 128."""

    def __init__(self) -> None:
        self.taken = 0
        self._own: dict[str | None, int] = {}

    def of(self, caller: str | None) -> int:
        """How many of them are this caller's."""
        return self._own.get(caller, 0)

    def take(self, caller: str | None, *, among: int, count: int = 1) -> bool:
        """Take `count` of `among` places for this caller, if it may have as many more."""
        own = self._own.get(caller, 0)
        if own + count > among - self.taken:
            return False
        self._own[caller] = own + count
        self.taken += count
        return True

    def give_back(self, caller: str | None, *, count: int = 1) -> None:
        """Return places that it has taken."""
        self.taken -= count
        if own := self._own[caller] - count:
            self._own[caller] = own
        else:
            del self._own[caller]


LEAST_RETRY, MOST_RETRY = 1.0, 60.0
"""Seconds a refused client may be asked to wait."""
RATE_WINDOW = 5.0
"""Seconds over which the rate of finished requests is taken."""
BODY_RATE = 100e6
"""Bytes of large bodies read a second. What such a body costs, from its first byte to the expert, is about 3 ns a byte
of the processor's time, so that two thirds of it are left for other requests."""
LARGEST_BODIES = 12
"""The memory for bodies is at least so many times the size of the largest body: one caller gets half of it, and a body
beyond ASCII needs six times its size."""

Turn = asyncio.Future[bool]
"""Whether a permit came, or the place in the queue went to another caller."""


class Admission:
    """Counts permits. Without a free one a request waits in a bounded queue; the permits that come free go round the
    callers, so that one with a thousand requests waiting does not starve another's only one. One caller may fill the
    queue, but keeps nobody out of it: a place for a caller with fewer waiting is then that of the latest request of the
    caller with most.

    Neither is for a request whose body is still on its way. Twice as many of these are taken as there are permits and
    places in the queue, each caller's share of them: alone it gets half, and one that lets its bodies never
    come keeps nobody out. The memory for large bodies is shared among callers the same way.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        """May be replaced; fewer permits than are in use come to count as requests end."""
        self.in_use = 0
        self.queued = 0
        self.closed = False
        """No request is taken any more: the process is about to end."""
        self.under_way: set[Cancellation] = set()
        """One for each request that arrives, waits or is worked on, so that the end of the process can cut them."""
        self.parsing = asyncio.Lock()
        """Held while a large body is parsed, so that other requests are served between two of them."""
        self._arriving = FairShares()
        self._memory = FairShares()
        self._next_read = 0.0
        self._queue: OrderedDict[str | None, OrderedDict[Ticket, None]] = OrderedDict()
        self._rate = _Rate()

    @property
    def arriving(self) -> int:
        """Requests whose body is not there yet."""
        return self._arriving.taken

    @property
    def body_memory(self) -> int:
        """Bytes of memory held for large bodies."""
        return self._memory.taken

    def hold(self, ticket: Ticket, size: int) -> None:
        """Hold memory for the body of a request until it has `size` bytes. Raises BodyMemoryFull."""
        limit = int(max(self.limits.body_memory_mb, LARGEST_BODIES * self.limits.max_body_mb) * 2**20)
        if not self._memory.take(ticket.caller, among=limit, count=size - ticket.memory):
            own = self._memory.of(ticket.caller) / 2**20
            why = (
                f"large bodies hold {self.body_memory / 2**20:.0f} of {limit / 2**20:.0f} MiB, {own:.0f} of this caller"
            )
            raise BodyMemoryFull(f"{why}: send it again (limits.body_memory_mb)", retry_after=LEAST_RETRY)
        ticket.memory = size

    async def pace(self, size: int) -> None:
        """Wait until so many bytes of a large body fit into BODY_RATE."""
        now = asyncio.get_running_loop().time()
        wait = self._next_read - now
        self._next_read = max(now, self._next_read) + size / BODY_RATE
        if wait > 0:
            await asyncio.sleep(wait)

    def free(self, ticket: Ticket) -> None:
        """Return the memory held for the body of a request."""
        self._memory.give_back(ticket.caller, count=ticket.memory)
        ticket.memory = 0

    def ticket(self, caller: str | None) -> Ticket:
        """For a request whose body is to arrive. To be entered at once. Raises Draining, or Overloaded when there is no
        place in the queue or too many arrive."""
        if self.closed:
            raise Draining("this gateway is about to end; ask again", retry_after=LEAST_RETRY)
        permits, places = self.limits.concurrent_requests, self.limits.queued_requests
        if self.in_use >= permits and self.queued >= places and self._giving_way_to(caller) is None:
            raise self._full()
        if not self._arriving.take(caller, among=2 * (permits + places)):
            own = self._arriving.of(caller)
            why = f"the bodies of {self.arriving} requests are still arriving, {own} of them from this caller"
            raise Overloaded(f"{why}, and no more may", retry_after=LEAST_RETRY)
        return Ticket(self, caller)

    def arrived(self, ticket: Ticket) -> None:
        """The body is there: a permit for it, or a place in the queue. Raises Overloaded when it finds none by now."""
        if self.in_use < self.limits.concurrent_requests:
            self.in_use += 1
        elif self.queued < self.limits.queued_requests:
            self._wait(ticket)
        elif (waiting := self._giving_way_to(ticket.caller)) is not None:
            self._displace(waiting)
            self._wait(ticket)
        else:
            raise self._full()
        self.ended_arriving(ticket)

    def _wait(self, ticket: Ticket) -> None:
        ticket.turn = asyncio.get_running_loop().create_future()
        self._queue.setdefault(ticket.caller, OrderedDict())[ticket] = None
        self.queued += 1
        self._rate.look()

    def _giving_way_to(self, caller: str | None) -> OrderedDict[Ticket, None] | None:
        """What waits for the caller with most, if these are at least two more than wait for this one. Were one enough,
        two callers would take the same place from each other again and again."""
        most = max(self._queue.values(), key=len, default=None)
        own = len(self._queue.get(caller, ()))
        return most if most is not None and len(most) >= own + 2 else None

    def _displace(self, waiting: OrderedDict[Ticket, None]) -> None:
        """The latest of them loses its place; others are left."""
        ticket, _ = waiting.popitem()
        self.queued -= 1
        assert ticket.turn is not None
        ticket.turn.set_result(False)

    def ended_arriving(self, ticket: Ticket) -> None:
        """Its body is there, or will not come."""
        ticket.arriving = False
        self._arriving.give_back(ticket.caller)

    def _full(self) -> Overloaded:
        return self.overloaded("and as many requests wait for one as may")

    def overloaded(self, why: str) -> Overloaded:
        """The refusal that tells when to come back: about when those who wait now will have been served."""
        retry = self._rate.seconds_for(self.queued + 1)
        return Overloaded(f"all {self.limits.concurrent_requests} permits are in use {why}", retry_after=retry)

    def release(self) -> None:
        """A permit comes free and goes to whoever is next."""
        self.in_use -= 1
        self._rate.done += 1
        if self._queue:
            self.grant()

    def grant(self) -> None:
        """Give free permits to those who wait, one caller after another."""
        while self._queue and self.in_use < self.limits.concurrent_requests:
            caller, waiting = next(iter(self._queue.items()))
            ticket, _ = waiting.popitem(last=False)
            if waiting:
                self._queue.move_to_end(caller)
            else:
                del self._queue[caller]
            self.queued -= 1
            self.in_use += 1
            assert ticket.turn is not None
            ticket.turn.set_result(True)

    def forget(self, ticket: Ticket) -> None:
        """Take a ticket out of the queue."""
        waiting = self._queue[ticket.caller]
        del waiting[ticket]
        if not waiting:
            del self._queue[ticket.caller]
        self.queued -= 1


class Ticket:
    """One request: `arriving` first, then it has a permit, or a place in the queue until it is its `turn` or the place
    is another's. Leaving it gives back what it has."""

    __slots__ = ("_admission", "arriving", "caller", "memory", "turn")

    def __init__(self, admission: Admission, caller: str | None) -> None:
        self._admission = admission
        self.caller = caller
        self.arriving = True
        self.turn: Turn | None = None
        self.memory = 0
        """Bytes held for its body; none for a small one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.free_body()
        if self.arriving:
            self._admission.ended_arriving(self)
        elif self.turn is None:
            self._admission.release()
        elif not self.turn.done():
            self._admission.forget(self)
        elif self.turn.result():
            self._admission.release()

    def arrived(self) -> None:
        """The body is there. Raises Overloaded when there is no place for it to wait in."""
        self._admission.arrived(self)

    def hold(self, size: int) -> None:
        """Hold memory for its body until it has `size` bytes in all. Raises BodyMemoryFull."""
        if size > self.memory:
            self._admission.hold(self, size)

    async def pace(self, arrived: int) -> None:
        """Wait until `arrived` bytes more of its large body may be read."""
        await self._admission.pace(arrived)

    def free_body(self) -> None:
        """The body is no longer in memory."""
        if self.memory:
            self._admission.free(self)

    async def permit(self) -> None:
        """Return once it is this ticket's turn. Raises Overloaded after `queue_timeout`, counted from here, or when its
        place goes to another caller."""
        assert self.turn is not None
        timeout = self._admission.limits.queue_timeout
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self.turn)  # the queue sets its result, so it must not be cancelled
        except TimeoutError:
            if not self.turn.done():
                raise self._admission.overloaded(f"and none came free within {timeout:g} s") from None
        if not self.turn.result():  # raised here, not set: held by the turn, it would hold the request in a circle
            raise self._admission.overloaded("and the place in the queue went to a caller with fewer waiting")


class _Rate:
    """How many requests end a second while some wait, taken over one window after the other."""

    __slots__ = ("_at", "_before", "_per_second", "done")

    def __init__(self) -> None:
        self.done = 0
        self._before = 0
        self._at = 0.0
        self._per_second: float | None = None

    def look(self) -> None:
        """Called whenever a request has to wait; what was done while none had to is no measure."""
        now = time.monotonic()
        elapsed = now - self._at
        if elapsed < RATE_WINDOW:
            return
        self._per_second = (self.done - self._before) / elapsed if elapsed < 2 * RATE_WINDOW else None
        self._at, self._before = now, self.done

    def seconds_for(self, requests: int) -> float:
        """Until so many more have ended, within LEAST_RETRY and MOST_RETRY."""
        self.look()
        if self._per_second is None:
            return LEAST_RETRY
        return min(max(requests / (self._per_second or 1e-9), LEAST_RETRY), MOST_RETRY)
