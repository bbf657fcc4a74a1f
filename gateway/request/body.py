"""Read a request body under a limit.

Count the values of a JSON text while its bytes arrive, before any object is built from them.
"""

from __future__ import annotations

from typing import Protocol

from starlette.types import Message, Receive, Scope

from coe.errors import BodyTooLarge, BodyTooSlow, InvalidRequest, WrongMediaType
from gateway.request.cancellation import ClientLeftError

MAX_VALUES = 500_000
"""Values of one body where experts.yaml declares no other number."""
CONTAINER_WEIGHT = 10
"""An object or array counts as so many values: it takes that much more memory and time than a number."""
VALUE_BYTES = 24
"""Bytes of memory of one counted value, about."""
SCAN_WINDOW = 2**16
"""Bytes scanned at a time, which bounds the memory of a scan."""
_NOT_COUNTED = bytes(set(range(256)) - set(b"[{,"))
_BELOW_ASTRAL = bytes(range(0xF0))


class JsonScan:
    """Counts commas, strings, and openings of objects and arrays outside of strings, so that the content of a string
    (a file of code, an image) counts nothing.

    A text that is not JSON gets some number: the parser refuses it where its grammar breaks, and counts no more than
    this does up to there.
    """

    __slots__ = ("_escaped", "_in_string", "_max_values", "size", "values", "width")

    def __init__(self, *, max_values: int) -> None:
        self.size = 0
        self.values = 0
        self.width = 1
        """Bytes that a character of the text's strings may take in memory: 1, 2 or 4."""
        self._max_values = max_values
        self._in_string = False
        self._escaped = False

    @property
    def memory(self) -> int:
        """Bytes that the body needs at once, about: as it arrived, as parsed strings, and written for the expert. The
        first and the last are never both there."""
        written = 1 if self.width == 1 else 2  # a string beyond ASCII keeps its UTF-8 form once it was written
        return self.size * (self.width + written) + self.values * VALUE_BYTES

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Scan what has arrived. Raises InvalidRequest as soon as there are more values than allowed."""
        view = memoryview(data)
        for at in range(0, len(view), SCAN_WINDOW):
            self._scan(bytes(view[at : at + SCAN_WINDOW]))
            if self.values > self._max_values:
                raise InvalidRequest(
                    f"the body holds more than {self._max_values} JSON values, where an object or array counts as "
                    f"{CONTAINER_WEIGHT} (limits.max_json_values in experts.yaml): send less in one request",
                    code="too_many_values",
                )

    def _scan(self, window: bytes) -> None:
        self.size += len(window)
        escapes = b"\\" in window
        if self.width < 4:
            self.width = max(self.width, _width(window, escapes=escapes))
        if self._escaped:
            window = window[1:]
        trailing = len(window) - len(window.rstrip(b"\\")) if escapes else 0
        self._escaped = trailing % 2 == 1
        if b'"' not in window:
            if not self._in_string:
                self._count(window)
            return
        if escapes:
            window = window.replace(b"\\\\", b"").replace(b'\\"', b"")
        chunks = window.split(b'"')
        self._count(b"".join(chunks[self._in_string :: 2]))
        quotes = len(chunks) - 1
        self.values += quotes // 2
        self._in_string ^= bool(quotes % 2)

    def _count(self, outside: bytes) -> None:
        structure = outside.translate(None, _NOT_COUNTED)
        commas = structure.count(b",")
        self.values += commas + CONTAINER_WEIGHT * (len(structure) - commas)


def _width(window: bytes, *, escapes: bool) -> int:
    """Bytes that a character may take, by the widest among them."""
    if escapes and (b"\\ud" in window or b"\\uD" in window):
        return 4
    if not window.isascii():
        return 4 if window.translate(None, _BELOW_ASTRAL) else 2
    return 2 if escapes and b"\\u" in window else 1


BODY_TIMEOUT = 30.0
"""Seconds for a whole body."""
SMALL_BODY = 2**16
"""Bytes of a body whose values are not counted and whose memory is not: permits and places bound these."""
INITIAL_COPIES = 2
"""Copies of a body's bytes that memory is reserved for before any of them has arrived: as read, and as parsed."""


class BodyMemory(Protocol):
    """What bounds the large bodies of all requests together."""

    def hold(self, size: int) -> None:
        """Hold memory for this body until it has `size` bytes in all. Raises BodyMemoryFull."""

    async def pace(self, arrived: int) -> None:
        """Wait until `arrived` bytes more may be read."""


async def read_json_body(
    scope: Scope, receive: Receive, *, limit: int, max_values: int = MAX_VALUES, room: BodyMemory | None = None
) -> bytes | bytearray:
    """Reads the whole body, at most `limit` bytes and `max_values` JSON values.

    The media type must be declared: for a page of any origin a browser sends a body without one, or of text/plain,
    without a preflight request. Raises an InvalidRequest, BodyMemoryFull, or ClientLeftError.
    """
    media_type, declared = b"", 0
    for name, value in scope["headers"]:
        if name == b"content-type":
            media_type = value.partition(b";")[0].strip().lower()
        elif name == b"content-length" and value.isdigit():
            declared = int(value)
    if media_type != b"application/json":
        sent = repr(media_type.decode("latin-1")[:64]) if media_type else "a body without a media type"
        raise WrongMediaType(f"send the header content-type: application/json, not {sent}")
    if declared > limit:
        raise _too_large(limit)
    if room and declared > SMALL_BODY:
        room.hold(INITIAL_COPIES * declared)
    first = await _received(receive)
    chunk: bytes = first.get("body", b"")
    if declared <= SMALL_BODY and len(chunk) <= SMALL_BODY and not first.get("more_body", False):
        if len(chunk) > limit:
            raise _too_large(limit)
        return chunk
    return await _read(first, receive, limit=limit, scan=JsonScan(max_values=max_values), room=room)


async def _read(
    message: Message, receive: Receive, *, limit: int, scan: JsonScan, room: BodyMemory | None
) -> bytes | bytearray:
    """The body that begins with `message`, in one buffer: a list of chunks to be joined would hold it twice."""
    body = bytearray()
    while True:
        chunk: bytes = message.get("body", b"")
        if len(body) + len(chunk) > limit:
            raise _too_large(limit)
        body += chunk
        scan.feed(chunk)
        if room and scan.size > SMALL_BODY:
            room.hold(scan.memory)
            await room.pace(len(chunk))
        if not message.get("more_body", False):
            return body
        message = await _received(receive)


async def _received(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientLeftError
    return message


def too_slow() -> BodyTooSlow:
    """The error of a body that is not there after BODY_TIMEOUT."""
    return BodyTooSlow(f"the body did not arrive within {BODY_TIMEOUT:g} s")


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit / 2**20:g} MiB (limits.max_body_mb in experts.yaml)")
