"""Frames between the two sandboxed processes: the length in four bytes, then JSON."""

from __future__ import annotations

import json
import os
from typing import Any

MAX_MESSAGE_BYTES = 8 * 2**20
"""Size of one frame; larger values cannot pass between the processes."""
_LENGTH_BYTES = 4
_READ_BYTES = 65536


class MessageTooLarge(ValueError):
    """A value is too large to pass between the processes."""


class Channel:
    """A pair of pipes. `receive` raises EOFError at the end, and ValueError for bytes that are no frame."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing

    def send(self, message: Any) -> None:
        """Raises MessageTooLarge, with nothing written, or OSError when the other process has ended."""
        data = json.dumps(message).encode()
        if len(data) > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(f"a value of {len(data)} bytes, more than {MAX_MESSAGE_BYTES}")
        left = memoryview(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
        while left:
            left = left[os.write(self._writing, left) :]

    def receive(self) -> Any:
        size = int.from_bytes(self._read(_LENGTH_BYTES), "big")
        if size > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(f"a value of {size} bytes, more than {MAX_MESSAGE_BYTES}")
        return json.loads(self._read(size))

    def _read(self, count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            data = os.read(self._reading, min(count - len(found), _READ_BYTES))
            if not data:
                raise EOFError
            found += data
        return bytes(found)
