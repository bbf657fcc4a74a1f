"""A connection that is fed the bytes of a response by hand."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from coe.experts.http.client import Connection


class _Transport(asyncio.Transport):
    def abort(self) -> None: ...

    def pause_reading(self) -> None: ...


class Reading(Connection):
    """Reads one response."""

    def __init__(self) -> None:
        super().__init__(cast("Any", None), set())
        self.connection_made(_Transport())
        self._busy = True

    def feed(self, data: bytes) -> bytes:
        """Returns the bytes of the body among these. Raises the ProtocolError."""
        self.data_received(data)
        self._raise()
        body, self._chunks, self._unread = b"".join(self._chunks), [], 0
        return body

    def end(self) -> None:
        """The server closes the connection. Raises the ProtocolError of an incomplete response."""
        self.connection_lost(None)
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
