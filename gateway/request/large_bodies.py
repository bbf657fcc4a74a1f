"""Bounds what large request bodies use of one process: memory, JSON values, read rate and time on the event loop.

A body is large above `SMALL_BODY` bytes; permits and the queue bound the small ones. `JsonScan` counts the values of a
body while its bytes arrive, before any object is built from them. `LargeBodies` bounds all large bodies together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from coe.core import Chat
from coe.errors import BodyMemoryFull, InvalidRequest
from coe.registry import Limits
from gateway.request.fair_shares import FairShares

SMALL_BODY = 2**16
"""Bytes of the largest body that is not scanned and for which no memory is reserved."""
BYTES_PER_SECOND = 100e6
"""Rate at which large bodies are read. A large body costs about 3 ns of processor time a byte, so this rate leaves two
thirds of a processor to other requests."""
MIN_MEMORY_IN_BODIES = 12
"""Memory for large bodies, at least, in bodies of the largest size allowed. One caller gets half of it, and a body
beyond ASCII needs six times its size."""
RETRY_SECONDS = 1.0
"""Retry-After of a refusal for lack of memory."""
PARSE_PAUSE = 0.02
"""Seconds before a large body is parsed, during which the event loop serves other requests."""

CONTAINER_WEIGHT = 10
"""Values that an object or array counts as: it takes that much more memory and time than a number."""
VALUE_BYTES = 24
"""Approximate bytes of memory of one counted value."""
SCAN_WINDOW = 2**16
"""Bytes scanned at a time, which bounds the memory of a scan."""
_NOT_COUNTED = bytes(set(range(256)) - set(b"[{,"))
_BELOW_ASTRAL = bytes(range(0xF0))


class LargeBodies:
    """The large bodies of all requests of one process. Callers share the memory fairly."""

    def __init__(self) -> None:
        self._memory = FairShares()
        self._next_read = 0.0
        self._parsing = asyncio.Lock()

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

    async def pace(self, size: int) -> None:
        """Wait until `size` bytes more fit into BYTES_PER_SECOND."""
        now = asyncio.get_running_loop().time()
        wait = self._next_read - now
        self._next_read = max(now, self._next_read) + size / BYTES_PER_SECOND
        if wait > 0:
            await asyncio.sleep(wait)

    async def parse(self, parse: Callable[[bytes | bytearray], Chat], body: bytes | bytearray) -> Chat:
        """Parse one body at a time, with a pause between two. Parsing one blocks the event loop, and so does
        serializing the previous one for its expert."""
        async with self._parsing:
            await asyncio.sleep(PARSE_PAUSE)
            chat = parse(body)
            await asyncio.sleep(0)
        return chat


class JsonScan:
    """Counts the values of a JSON text: commas, strings, and opened objects and arrays outside of strings. The content
    of a string (a file of code, an image) does not count.

    For a text that is not JSON the count is an upper bound of what the parser builds before it refuses the text.
    """

    __slots__ = ("_escaped", "_in_string", "_max_values", "size", "values", "width")

    def __init__(self, *, max_values: int) -> None:
        self.size = 0
        self.values = 0
        self.width = 1
        """Bytes of memory that a character of the text's strings may take: 1, 2 or 4."""
        self._max_values = max_values
        self._in_string = False
        self._escaped = False

    @property
    def memory(self) -> int:
        """Approximate bytes of memory that the body needs at once: its parsed strings, and the bytes that arrived
        or are serialized for the expert."""
        written = 1 if self.width == 1 else 2  # Python caches the UTF-8 form of a string beyond ASCII
        return self.size * (self.width + written) + self.values * VALUE_BYTES

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Scan the next bytes of the body. Raises InvalidRequest as soon as there are more values than allowed."""
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
    """Return the bytes of memory that the widest character takes."""
    if escapes and (b"\\ud" in window or b"\\uD" in window):
        return 4
    if not window.isascii():
        return 4 if window.translate(None, _BELOW_ASTRAL) else 2
    return 2 if escapes and b"\\u" in window else 1
