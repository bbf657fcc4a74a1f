"""Caches request heads, keyed by their bytes without the content-length, the only part that varies in most clients.

`KnownHeads` finds the ASGI scope of such a head without parsing it again. It learns heads that llhttp has accepted, and
only those whose framing is one plain content-length, so it accepts nothing that llhttp would refuse. Heads contain API
keys, which stay in memory until they are replaced or `clear` is called.
"""

from __future__ import annotations

import re
from typing import Any

from starlette.types import Scope

MAX_HEADS = 256
"""Heads of a process that are kept. A further one replaces the oldest."""
MAX_KNOWN_BYTES = 4096
"""Length of a head up to which it is kept."""
DERIVED = "coe.derived"
"""Key of the ASGI scope of a known head: a cache of values derived from the head, keyed by the object that derived
them. All requests with this head share it, so a value that also depends on the serving state is stored with its
version."""
_LENGTH = re.compile(rb"\r\ncontent-length: ?([1-9][0-9]{0,8})\r\n", re.IGNORECASE)
_UNSUPPORTED_HEADERS = frozenset((b"transfer-encoding", b"expect", b"upgrade"))
"""Headers with which the server does more than read a body of the declared length."""


class KnownHeads:
    """The scopes of known heads, by the bytes of the head without the digits of its content-length."""

    def __init__(self) -> None:
        self._scopes: dict[bytes, tuple[Scope, int]] = {}
        """The scope, and the index of the content-length among its headers."""

    def clear(self) -> None:
        """Forget all heads, and with them the API keys that they contain."""
        self._scopes.clear()

    def read(self, data: bytes) -> tuple[Scope, bytes, int] | None:
        """Return the scope of a request, the part of its body that is in `data`, and how many bytes are missing. None
        unless `data` begins with a known head and holds nothing after the body."""
        end = data.find(b"\r\n\r\n", 0, MAX_KNOWN_BYTES) + 4
        if (length := _LENGTH.search(data, 0, end)) is None or (missing := int(length[1]) + end - len(data)) < 0:
            return None
        if (known := self._scopes.get(data[: length.start(1)] + data[length.end(1) : end])) is None:
            return None
        scope, index = known
        headers = scope["headers"].copy()
        headers[index] = (b"content-length", length[1])
        return {**scope, "headers": headers}, data[end:], missing

    def add(self, data: bytes, scope: Scope) -> None:
        """Keep the head with which `data` begins, which was parsed as `scope`, unless it is unusual."""
        end = data.find(b"\r\n\r\n", 0, MAX_KNOWN_BYTES) + 4
        if (length := _LENGTH.search(data, 0, end)) is None or scope["method"] != "POST":
            return
        names = [name for name, _ in scope["headers"]]
        if names.count(b"content-length") != 1 or not _UNSUPPORTED_HEADERS.isdisjoint(names):
            return
        index = names.index(b"content-length")
        if scope["headers"][index][1] != length[1]:
            return
        if (head := data[: length.start(1)] + data[length.end(1) : end]) in self._scopes:
            return
        if len(self._scopes) >= MAX_HEADS:
            del self._scopes[next(iter(self._scopes))]
        derived: dict[object, Any] = {}
        self._scopes[head] = ({**scope, DERIVED: derived}, index)
