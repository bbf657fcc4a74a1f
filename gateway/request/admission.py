"""Admits requests: bounds how many run, wait and arrive at a time, and shares these places fairly among callers.

`Admission` holds the counts and the queue of one process. `ActiveRequest` is one request in progress: a context
manager that holds its place, permit, body memory, deadline and cancellation, and returns all of them at its end.
A request first arrives (its body is read), then holds a permit to its last byte or waits in the queue for one.
`AnswerPool` bounds the memory of answers.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from types import TracebackType
from typing import Self, TypeVar

from starlette.types import Receive

from coe.errors import AnswerMemoryFull, DeadlineExceeded, Draining, Overloaded, RequestError
from coe.experts.http.replies import MAX_ANSWER_BYTES
from coe.registry import Limits
from gateway.request.body import (
    BODY_TIMEOUT,
    RETRY_SECONDS,
    SMALL_BODY,
    ClientLeftError,
    FairShares,
    Head,
    LargeBodies,
    body_too_slow,
    read_json_body,
)

T = TypeVar("T")
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 60.0
"""Bounds of the Retry-After of a refused request."""
WATCH_DELAY = 0.05
"""Seconds after which a request watches for its client to leave. The task that watches costs a twentieth of the
processor time of a short request."""
RESERVE_DIVISOR = 16
"""The reserve is this part of all permits and of all places in the queue, and at least one."""
MIN_MEMORY_IN_ANSWERS = 2
"""Minimum memory, as a multiple of the largest answer: one caller gets half of it, so 2 admits any single answer."""
_Queue = OrderedDict["ActiveRequest", None]


class Admission:
    """Counts permits and queues requests that may not have one.

    A caller may hold all permits but the reserve, of which it may hold at most as many as are still free. So a caller
    without a permit gets one while any is free, however long the requests of another last. A permit that comes free
    goes to the waiting caller that holds fewest, and in turn to those that hold as many. The one caller of a gateway
    without keys may hold all permits.

    The places of the queue have the same reserve. Requests whose body still arrives hold neither a permit nor a place
    in the queue; there may be twice as many of them as permits and places, shared fairly among the callers.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        """Limits, which may be replaced. Permits in use beyond a lower limit end with their requests."""
        self.closed = False
        """True if all new requests are refused because the process is shutting down."""
        self.active: set[ActiveRequest] = set()
        """Requests that arrive, wait or run, for the end of the process to cancel."""
        self.large_bodies = LargeBodies()
        self._permits = FairShares()
        self._arriving = FairShares()
        self._waiting = FairShares()
        self._queues: OrderedDict[str | None, _Queue] = OrderedDict()

    @property
    def in_use(self) -> int:
        """Permits in use."""
        return self._permits.held

    @property
    def queued(self) -> int:
        """Requests that wait for a permit."""
        return self._waiting.held

    @property
    def arriving(self) -> int:
        """Requests whose body has not arrived yet."""
        return self._arriving.held

    @property
    def body_memory(self) -> int:
        """Bytes of memory reserved for large bodies."""
        return self.large_bodies.memory

    def open(self, caller: str | None, *, timeout: float) -> ActiveRequest:
        """Begin a request whose body is to arrive; enter it at once. Raises Draining, or Overloaded when the queue is
        full or too many bodies arrive."""
        if self.closed:
            raise Draining("this gateway is shutting down; send the request again", retry_after=MIN_RETRY_SECONDS)
        permits, places = self.limits.concurrent_requests, self.limits.queued_requests
        if not self._permits.allows(caller, capacity=permits, reserve=_reserve(caller, permits)) and (
            not self._waiting.allows(caller, capacity=places, reserve=_reserve(caller, places))
        ):
            raise self.overloaded(caller, "and the queue has no place for it")
        if not self._arriving.acquire(caller, capacity=2 * (permits + places)):
            own = self._arriving.of(caller)
            reason = f"the bodies of {self.arriving} requests are still arriving, {own} of them from this caller"
            raise Overloaded(f"{reason}, and no more may", retry_after=MIN_RETRY_SECONDS)
        return ActiveRequest(self, caller, timeout)

    def body_arrived(self, request: ActiveRequest) -> None:
        """Give the request a permit or a place in the queue. Raises Overloaded if there is neither."""
        caller, places = request.caller, self.limits.queued_requests
        if not self._acquire_permit(caller):
            if not self._waiting.acquire(caller, capacity=places, reserve=_reserve(caller, places)):
                raise self.overloaded(caller, "and the queue has no place for it")
            request.granted = asyncio.get_running_loop().create_future()
            self._queues.setdefault(caller, OrderedDict())[request] = None
        self.end_arrival(request)

    def end_arrival(self, request: ActiveRequest) -> None:
        """Free the request's place among the arriving ones."""
        request.arriving = False
        self._arriving.release(request.caller)

    def _acquire_permit(self, caller: str | None) -> bool:
        capacity = self.limits.concurrent_requests
        return self._permits.acquire(caller, capacity=capacity, reserve=_reserve(caller, capacity))

    def overloaded(self, caller: str | None, reason: str) -> Overloaded:
        """The refusal of a request. Its Retry-After is the time after which none that waits now still does."""
        own, permits = self._permits.of(caller), self.limits.concurrent_requests
        used = f"no permit is free for this caller ({self.in_use} of {permits} are in use, {own} of them by it)"
        longest = min(max(self.limits.queue_timeout, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)
        return Overloaded(f"{used} {reason}", retry_after=longest)

    def release(self, caller: str | None) -> None:
        """Return a permit of the caller, which may go to a request in the queue."""
        self._permits.release(caller)
        if self._queues:
            self.grant()

    def grant(self) -> None:
        """Give free permits to waiting requests, each to the caller that holds fewest, and in turn among equals."""
        while self._queues:
            caller = min(self._queues, key=self._permits.of)
            if not self._acquire_permit(caller):
                return  # no other caller may have it, as each holds at least as many
            queue = self._queues[caller]
            request, _ = queue.popitem(last=False)
            if queue:
                self._queues.move_to_end(caller)
            else:
                del self._queues[caller]
            self._waiting.release(caller)
            assert request.granted is not None
            request.granted.set_result(None)

    def dequeue(self, request: ActiveRequest) -> None:
        """Remove a waiting request from the queue."""
        queue = self._queues[request.caller]
        del queue[request]
        if not queue:
            del self._queues[request.caller]
        self._waiting.release(request.caller)


def _reserve(caller: str | None, capacity: int) -> int:
    """Return the last units of a capacity, of which the caller may hold at most as many as are still free."""
    return 0 if caller is None else max(1, capacity // RESERVE_DIVISOR)


class ActiveRequest:
    """One request from its arrival to its end, entered as a context manager.

    The block is cancelled when the deadline passes, when the client leaves, or by `cancel`; leaving the block then
    raises the reason in place of CancelledError. Leaving returns everything that the request holds.
    """

    def __init__(self, admission: Admission, caller: str | None, timeout: float) -> None:
        self.caller = caller
        self.arriving = True
        """True if the body has not arrived yet."""
        self.granted: asyncio.Future[None] | None = None
        """The wait in the queue, which ends with a permit. None if the request did not wait."""
        self.memory = 0
        """Bytes reserved for a large body."""
        self._admission = admission
        self._timeout = timeout
        self._reason: RequestError | ClientLeftError | None = None
        self._slow = False
        """True from WATCH_DELAY on."""
        self._receive: Receive | None = None
        """Set once the body has arrived, until a watcher waits for the client to leave."""
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._loop = task.get_loop()
        self._started = self._loop.time()
        self.deadline = self._started + min(self._timeout, BODY_TIMEOUT)
        """Deadline by the event loop's clock; at first that of the body. May only be moved to later."""
        self._timer = self._loop.call_at(min(self._started + WATCH_DELAY, self.deadline), self._on_timer)
        self._admission.active.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self in self._admission.active:
            self.complete()
        if self.memory:
            self.keep_memory(0)
        if self.arriving:
            self._admission.end_arrival(self)
        elif self.granted is not None and not self.granted.done():
            self._admission.dequeue(self)
        else:
            self._admission.release(self.caller)
        if self._reason is not None:
            self._task.uncancel()
            if kind is asyncio.CancelledError:
                try:
                    raise self._reason from None
                finally:
                    self._reason = None  # its frames refer to this request: the cycle would keep both in memory

    async def admit(self, head: Head, receive: Receive, *, forms: bool = False) -> bytes | bytearray:
        """Read the body, which may be a form with `forms`, then wait for a permit. In this order, because a body that
        never comes must not hold a permit, and a client that leaves is noticed only after its body. Raises what
        `read_json_body` does, or Overloaded."""
        limits = self._admission.limits
        size, values = int(limits.max_body_mb * 2**20), limits.max_json_values
        body = await read_json_body(head, receive, limit=size, max_values=values, reservation=self, forms=forms)
        self._admission.body_arrived(self)
        self.deadline = self._started + self._timeout
        self._receive = receive
        if self._slow:
            self._watch_client()
        if self.granted is not None:
            await self.wait_for_permit()
        return body

    async def wait_for_permit(self) -> None:
        """Wait in the queue. Raises Overloaded after `queue_timeout` seconds."""
        assert self.granted is not None
        timeout = self._admission.limits.queue_timeout
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self.granted)  # Admission sets its result, so it must not be cancelled
        except TimeoutError:
            if not self.granted.done():
                raise self._admission.overloaded(self.caller, f"and none came free within {timeout:g} s") from None

    def reserve_memory(self, size: int) -> None:
        """Reserve memory for the body until it has `size` bytes in all. Raises BodyMemoryFull."""
        if size > self.memory:
            self._admission.large_bodies.reserve(self.caller, size - self.memory, self._admission.limits)
            self.memory = size

    async def process(self, work: Callable[[], T], *, size: int) -> T:
        """Return the result of `work` on `size` bytes; on many once it is the caller's turn."""
        return work() if size <= SMALL_BODY else await self._admission.large_bodies.process(self.caller, work)

    def keep_memory(self, size: int) -> None:
        """Return the memory reserved for the body, but for `size` bytes of a large one."""
        if freed := max(0, self.memory - size):
            self._admission.large_bodies.release(self.caller, freed)
            self.memory -= freed

    def complete(self) -> None:
        """Mark the answer as sent: from now on nothing cancels the request, not even a client that leaves."""
        self._admission.active.discard(self)
        self._timer.cancel()
        self._receive = None
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None  # its exception refers to this request: the cycle would keep the request in memory

    def cancel(self, reason: RequestError | ClientLeftError) -> None:
        """Cancel the block with this reason, unless it is being cancelled already."""
        if self._reason is None:
            self._reason = reason
            self._task.cancel()

    def _watch_client(self) -> None:
        """Start to wait for the client to leave, if the body has arrived."""

        async def watch(receive: Receive) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.cancel(ClientLeftError())

        if self._receive is not None:
            self._watcher = self._loop.create_task(watch(self._receive))
            self._receive = None

    def _on_timer(self) -> None:
        if self._loop.time() < self.deadline:  # WATCH_DELAY has passed, or the deadline was moved to later
            self._slow = True
            self._watch_client()
            self._timer = self._loop.call_at(self.deadline, self._on_timer)
        elif self.arriving and self._timeout > BODY_TIMEOUT:
            self.cancel(body_too_slow())
        else:
            message = f"the answer was not complete within the request's timeout of {self._timeout:g} s"
            self.cancel(DeadlineExceeded(message))


class AnswerPool:
    """The memory for answers that one process holds whole, which callers share fairly.

    It bounds answers without a stream from their first byte until the client has the last one, long events, and what
    recipes and translated streams collect. `limits.body_memory_mb` is its size, as that of the memory for large bodies.
    """

    def __init__(self) -> None:
        self._shares = FairShares()
        self._lock = Lock()  # litellm reads its answers in another thread

    @property
    def held(self) -> int:
        """Bytes held."""
        return self._shares.held

    def grow(self, caller: str | None, limits: Limits, count: int) -> None:
        """Hold so many more bytes for this caller, fewer if the number is negative. Raises AnswerMemoryFull."""
        with self._lock:
            if count < 0:
                self._shares.release(caller, count=-count)
                return
            capacity = max(limits.body_memory_mb * 2**20, MIN_MEMORY_IN_ANSWERS * MAX_ANSWER_BYTES)
            if self._shares.acquire(caller, capacity=capacity, count=count):
                return
            own = self._shares.of(caller) / 2**20
        used = f"{self.held / 2**20:.0f} of {capacity / 2**20:.0f} MiB, {own:.0f} of this caller"
        message = f"answers that are held whole take {used}: ask for a stream, or again (limits.body_memory_mb)"
        error = AnswerMemoryFull(message, expert="")
        error.retry_after = RETRY_SECONDS
        raise error
