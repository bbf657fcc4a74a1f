"""Reads the JSON body of a request under limits of size, number of values, memory and time, and validates it.

Chat requests call `read_json_body`; their dialect parses the bytes. Endpoints with a declared schema call it and
`validated`. A body is large above `SMALL_BODY` bytes; permits and the queue bound the small ones. `JsonScan` counts
the values of a large body while its bytes arrive; `LargeBodies` bounds all large bodies of a process together.
`FairShares` shares a fixed capacity among callers: bodies that arrive, memory of large bodies, feedback in progress.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.types import Receive, Scope

from coe.errors import BodyMemoryFull, BodyTooLarge, BodyTooSlow, InvalidRequest, WrongMediaType
from coe.registry import Limits

T = TypeVar("T")
SMALL_BODY = 2**16
"""Bytes of the largest body that is not scanned and for which no memory is reserved."""
MIN_MEMORY_IN_BODIES = 12
"""Minimum memory for large bodies, as a multiple of the maximum body size. A body that is not ASCII needs up to six
times its size, and one caller gets half of the memory, so 12 admits any single body."""
RETRY_SECONDS = 1.0
"""Retry-After of a refusal for lack of memory."""
PAUSE = 3.0
"""Length of the pause after long work on a large body, as a multiple of the time that the work took. In the pause the
event loop serves other requests, and serializes the body for its expert, which takes about as long as to parse it."""
SHORT_WORK = 0.001
"""Seconds of work after which no pause is needed, as it delays other requests by at most this in each iteration of the
event loop."""

CONTAINER_WEIGHT = 10
"""Values that an object or array counts as: it takes that much more memory and time than a number."""
VALUE_BYTES = 24
"""Approximate bytes of memory of one counted value."""
SCAN_WINDOW = 2**18
"""Bytes scanned at a time, which bounds the memory of a scan."""
_NOT_COUNTED = bytes(set(range(256)) - set(b"[{,"))


class FairShares:
    """Shares a fixed capacity among callers: each may hold at most as much as is still free.

    So no caller can use up the share that another needs, and no part of the capacity is reserved for a caller.

    One caller alone gets half of the capacity, each of two callers a third. A caller at its limit leaves half of what
    it found free, so 128 units are exhausted only when about eight callers are at their limit.

    With a `reserve`, the rule applies only to the last `reserve` units of the capacity: a caller may hold any number of
    the units before.
    """

    def __init__(self) -> None:
        self.held = 0
        self._held_by: dict[str | None, int] = {}

    def of(self, caller: str | None) -> int:
        """Return the units that this caller holds."""
        return self._held_by.get(caller, 0)

    def allows(self, caller: str | None, *, capacity: int, count: int = 1, reserve: int | None = None) -> bool:
        """Return True if the caller may hold `count` more units of `capacity`. The default reserve is all of it."""
        own = self._held_by.get(caller, 0)
        return capacity - self.held - count >= (own if reserve is None else min(own, reserve))

    def acquire(self, caller: str | None, *, capacity: int, count: int = 1, reserve: int | None = None) -> bool:
        """Give the caller `count` more units of `capacity`, or return False if that exceeds its share."""
        if not self.allows(caller, capacity=capacity, count=count, reserve=reserve):
            return False
        self._held_by[caller] = self._held_by.get(caller, 0) + count
        self.held += count
        return True

    def release(self, caller: str | None, *, count: int = 1) -> None:
        """Return units that the caller holds."""
        self.held -= count
        if own := self._held_by[caller] - count:
            self._held_by[caller] = own
        else:
            del self._held_by[caller]


class LargeBodies:
    """The large bodies of all requests of one process. Callers share the memory fairly, and process bodies in turn."""

    def __init__(self) -> None:
        self._memory = FairShares()
        self._is_busy = False
        """True if work was done in this iteration of the event loop, or a pause is due."""
        self._paused_until = 0.0
        """End of the pause after the last long work."""
        self._waiting: OrderedDict[str | None, deque[asyncio.Future[None]]] = OrderedDict()
        """The turns that requests wait for, by caller; the first caller is the next."""

    @property
    def memory(self) -> int:
        """Bytes of memory reserved."""
        return self._memory.held

    def reserve(self, caller: str | None, size: int, limits: Limits) -> None:
        """Reserve `size` more bytes for a body of this caller. Raises BodyMemoryFull."""
        capacity = int(max(limits.body_memory_mb, MIN_MEMORY_IN_BODIES * limits.max_body_mb) * 2**20)
        if not self._memory.acquire(caller, capacity=capacity, count=size):
            own = self._memory.of(caller) / 2**20
            used = f"{self.memory / 2**20:.0f} of {capacity / 2**20:.0f} MiB, {own:.0f} of this caller"
            message = f"large bodies hold {used}: send it again (limits.body_memory_mb)"
            raise BodyMemoryFull(message, retry_after=RETRY_SECONDS)

    def release(self, caller: str | None, size: int) -> None:
        """Return reserved bytes."""
        self._memory.release(caller, count=size)

    async def process(self, caller: str | None, work: Callable[[], T]) -> T:
        """Return the result of `work`, which blocks the event loop, once it is the caller's turn."""
        loop = asyncio.get_running_loop()
        if self._is_busy:
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting.setdefault(caller, deque()).append(turn)
            await turn
        else:
            self._is_busy = True
            loop.call_soon(self._begin_turn)
        begin = time.perf_counter()
        try:
            return work()
        finally:
            end = time.perf_counter()
            if end - begin > SHORT_WORK:
                self._paused_until = end + PAUSE * (end - begin)

    def _begin_turn(self) -> None:
        """Let the oldest request of the next caller work, once in an iteration of the event loop and not in a pause."""
        pause = self._paused_until - time.perf_counter()
        if pause <= 0:
            if not self._waiting:
                self._is_busy = False
                return
            caller, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[caller] = turns  # behind the others
            if not turn.done():  # its request goes on
                turn.set_result(None)
        asyncio.get_running_loop().call_later(pause, self._begin_turn)


class JsonScan:
    """Counts the values of a JSON text: commas, strings, and opened objects and arrays outside of strings. The content
    of a string (a file of code, an image) does not count.

    For a text that is not JSON the count is an upper bound of what the parser builds before it refuses the text.
    """

    __slots__ = ("_escaped", "_in_string", "_max_values", "is_wide", "size", "values")

    def __init__(self, *, max_values: int) -> None:
        self.size = 0
        self.values = 0
        self.is_wide = False
        """True if a character of the text's strings may take four bytes of memory, not one."""
        self._max_values = max_values
        self._in_string = False
        self._escaped = False

    @property
    def memory(self) -> int:
        """Approximate bytes of memory that the body needs at once: its parsed strings, and the bytes that arrived
        or are serialized for the expert."""
        copies = 6 if self.is_wide else 2  # Python caches the UTF-8 form of a string beyond ASCII
        return self.size * copies + self.values * VALUE_BYTES

    def feed(self, data: bytes) -> None:
        """Scan the next bytes of the body. Raises InvalidRequest as soon as there are more values than allowed."""
        for at in range(0, len(data), SCAN_WINDOW):
            self._scan(data[at : at + SCAN_WINDOW])
            if self.values > self._max_values:
                raise InvalidRequest(
                    f"the body holds more than {self._max_values} JSON values, where an object or array counts as "
                    f"{CONTAINER_WEIGHT} (limits.max_json_values in experts.yaml): send less in one request",
                    code="too_many_values",
                )

    def _scan(self, window: bytes) -> None:
        self.size += len(window)
        escapes = b"\\" in window
        self.is_wide = self.is_wide or not window.isascii() or (escapes and b"\\u" in window)
        if self._escaped:  # the last window ended with the backslash of an escape
            window = window[1:]
        # An odd number of backslashes at the end escapes the first character of the next window.
        trailing = len(window) - len(window.rstrip(b"\\")) if escapes else 0
        self._escaped = trailing % 2 == 1
        if escapes:
            window = window.replace(b"\\\\", b"").replace(b'\\"', b"")
        chunks = window.split(b'"')  # every second chunk is outside of strings
        structure = b"".join(chunks[self._in_string :: 2]).translate(None, _NOT_COUNTED)
        commas, quotes = structure.count(b","), len(chunks) - 1
        self.values += commas + CONTAINER_WEIGHT * (len(structure) - commas) + quotes // 2
        self._in_string ^= bool(quotes % 2)


FORM = b"multipart/form-data"
BODY_TIMEOUT = 30.0
"""Seconds in which a whole body must arrive."""
DEFAULT_MAX_VALUES = 500_000
"""JSON values of one body where no other limit applies."""
INITIAL_COPIES = 2
"""Copies of a body for which memory is reserved before its first byte arrives: as read, and as parsed."""


class RequestModel(BaseModel):
    """A body or a query string without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Body = TypeVar("Body", bound=BaseModel)


class ClientLeftError(Exception):
    """The client closed the connection or reads no more, so the answer is not needed."""


class BodyReservation(Protocol):
    """Memory reserved for one large body."""

    def reserve_memory(self, size: int) -> None:
        """Grow the reservation to `size` bytes in all. Raises BodyMemoryFull."""

    async def process(self, work: Callable[[], T], *, size: int) -> T:
        """Return the result of `work` on `size` bytes; on many once it is the caller's turn."""


Head = Mapping[bytes, bytes]
"""The headers of a request by their names in lower case."""


def read_head(scope: Scope) -> Head:
    """The headers of a request. One that is repeated has all its values, separated by commas (RFC 9110, 5.3)."""
    headers = scope["headers"]
    head: dict[bytes, bytes] = dict(headers)
    if len(head) < len(headers):
        values: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            values.setdefault(name, []).append(value)
        head = {name: b",".join(filter(None, several)) for name, several in values.items()}
    return head


async def read_json_body(
    head: Head,
    receive: Receive,
    *,
    limit: int,
    max_values: int = DEFAULT_MAX_VALUES,
    reservation: BodyReservation | None = None,
    forms: bool = False,
) -> bytes | bytearray:
    """Read the whole body, at most `limit` bytes and `max_values` JSON values. With `forms` it may be a multipart form.

    The client must declare the media type: for a page of any origin, a browser sends text/plain or an undeclared type
    without a preflight request. Raises an InvalidRequest, BodyMemoryFull, or ClientLeftError.
    """
    media_type, length = head.get(b"content-type", b""), head.get(b"content-length", b"")
    if media_type != b"application/json":
        media_type = media_type.partition(b";")[0].strip().lower()
    declared = int(length) if length.isdigit() else 0
    is_form = forms and media_type == FORM
    if media_type != b"application/json" and not is_form:
        sent = repr(media_type.decode("latin-1")[:64]) if media_type else "a body without a media type"
        raise WrongMediaType(f"send the header content-type: application/json, not {sent}")
    if declared > limit:
        raise _too_large(limit, is_chat=reservation is not None)
    if reservation and declared > SMALL_BODY:
        reservation.reserve_memory(INITIAL_COPIES * declared)
    scan = None if is_form else JsonScan(max_values=max_values)
    body = bytearray()  # one buffer; joining a list of chunks would hold the body twice
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        chunk: bytes = message.get("body", b"")
        if len(body) + len(chunk) > limit:
            raise _too_large(limit, is_chat=reservation is not None)
        is_last = not message.get("more_body", False)
        if is_last and not body and max(declared, len(chunk)) <= SMALL_BODY:
            return chunk
        body += chunk
        if reservation is None or len(body) <= SMALL_BODY:
            if scan is not None:
                scan.feed(chunk)
        elif scan is None:
            reservation.reserve_memory(INITIAL_COPIES * len(body))
        else:
            await reservation.process(partial(scan.feed, chunk), size=len(body))
            reservation.reserve_memory(scan.memory)
        if is_last:
            return body


def body_too_slow(seconds: float = BODY_TIMEOUT) -> BodyTooSlow:
    """The error of a body that did not arrive in time."""
    return BodyTooSlow(f"the body did not arrive within {seconds:g} s")


def _too_large(limit: int, *, is_chat: bool) -> BodyTooLarge:
    size = f"{limit / 2**20:g} MiB" if limit >= 2**20 else f"{limit / 2**10:g} KiB"
    return BodyTooLarge(f"the body is larger than {size}" + " (limits.max_body_mb in experts.yaml)" * is_chat)


def validated(model: type[Body], data: bytes | bytearray) -> Body:
    """The body as a `model`. Raises InvalidRequest, which names the field."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(step) for step in first["loc"])[:64]
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise InvalidRequest(f"{field}: {reason}" if field else reason, param=field or None) from None
