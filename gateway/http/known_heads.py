"""Caches request heads, keyed by their bytes without the values that differ between the requests of a client.

These are the content-length and PER_REQUEST_HEADERS, which name a trace, a session or the client behind a
proxy. `KnownHeads` finds the ASGI scope of such a head without parsing it again. It learns heads that llhttp has
accepted, and only those whose framing is one plain content-length. The other values consist of visible characters with
single spaces, so it accepts nothing that llhttp would refuse. Heads contain API keys, which stay in memory until they
are replaced or `clear` is called.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from starlette.types import Scope

MAX_HEADS = 256
"""Heads of a process that are kept. A further one replaces the oldest."""
MAX_KNOWN_BYTES = 4096
"""Length of a head up to which it is kept."""
DERIVED = "coe.derived"
"""Key of the ASGI scope of a known head: a cache of values derived from the head, keyed by the object that derived
them. All requests with this head share it, so a value that also depends on the serving state is stored with its
version, and no value may depend on the content-length or PER_REQUEST_HEADERS."""
_LENGTH = re.compile(rb"\r\ncontent-length: ?([1-9][0-9]{0,8})\r\n", re.IGNORECASE)
SESSION, TRACE_HEADERS = b"x-session-id", (b"traceparent", b"tracestate")
PER_REQUEST_HEADERS = frozenset(
    (SESSION, *TRACE_HEADERS, b"x-request-id", b"idempotency-key", b"x-forwarded-for", b"x-real-ip")
)
"""Headers that may differ in each request of a client."""
_PER_REQUEST = re.compile(
    rb"\r\n(%b): ?([!-~]+(?: [!-~]+)*)(?=\r\n)" % b"|".join(sorted(PER_REQUEST_HEADERS)), re.IGNORECASE
)
_UNSUPPORTED_HEADERS = frozenset((b"transfer-encoding", b"expect", b"upgrade"))
"""Headers with which the server does more than read a body of the declared length."""


class _Known(NamedTuple):
    """The scope of a head, and the indexes of the content-length and of the per-request headers among its headers."""

    scope: Scope
    length: int
    per_request: tuple[int, ...]


class KnownHeads:
    """The scopes of known heads, by the bytes of the head without the values of its per-request headers."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Known] = {}

    def clear(self) -> None:
        """Forget all heads, and with them the API keys that they contain."""
        self._known.clear()

    def read(self, data: bytes) -> tuple[Scope, bytes, int] | None:
        """Return the scope of a request, the part of its body that is in `data`, and how many bytes are missing. None
        unless `data` begins with a known head and holds nothing after the body."""
        end = data.find(b"\r\n\r\n", 0, MAX_KNOWN_BYTES) + 4
        if (length := _LENGTH.search(data, 0, end)) is None or (missing := int(length[1]) + end - len(data)) < 0:
            return None
        key, values = _split(data[: length.start(1)] + data[length.end(1) : end])
        if (known := self._known.get(key)) is None or len(known.per_request) != len(values):
            return None
        headers = known.scope["headers"].copy()
        headers[known.length] = (b"content-length", length[1])
        for index, value in zip(known.per_request, values, strict=True):
            headers[index] = (headers[index][0], value)
        return {**known.scope, "headers": headers}, data[end:], missing

    def add(self, data: bytes, scope: Scope) -> None:
        """Keep the head with which `data` begins, which was parsed as `scope`, unless it is unusual."""
        end = data.find(b"\r\n\r\n", 0, MAX_KNOWN_BYTES) + 4
        if (length := _LENGTH.search(data, 0, end)) is None or scope["method"] != "POST":
            return
        names = [name for name, _ in scope["headers"]]
        if names.count(b"content-length") != 1 or not _UNSUPPORTED_HEADERS.isdisjoint(names):
            return
        position = names.index(b"content-length")
        if scope["headers"][position][1] != length[1]:
            return
        key, values = _split(data[: length.start(1)] + data[length.end(1) : end])
        per_request = tuple(index for index, name in enumerate(names) if name in PER_REQUEST_HEADERS)
        if key in self._known or [scope["headers"][index][1] for index in per_request] != values:
            return
        if len(self._known) >= MAX_HEADS:
            del self._known[next(iter(self._known))]
        derived: dict[object, Any] = {}
        self._known[key] = _Known({**scope, DERIVED: derived}, position, per_request)


def _split(head: bytes) -> tuple[bytes, list[bytes]]:
    """Return the head without the values of its per-request headers, and these values."""
    parts = _PER_REQUEST.split(head)
    if len(parts) == 1:
        return head, []
    values = parts[2::3]
    del parts[2::3]
    return b"\0".join(parts), values  # llhttp accepts no head with this byte
