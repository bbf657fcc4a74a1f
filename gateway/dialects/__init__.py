"""The APIs that clients use: each module of this package is a `Dialect`, which parses requests and writes errors."""

from __future__ import annotations

from typing import Protocol

from coe.core import Api, Chat
from coe.errors import RequestError


class Dialect(Protocol):
    """One API's form of requests and errors. `parse` returns the routing view of a body, or raises an InvalidRequest
    that names the field."""

    @property
    def API(self) -> Api: ...  # noqa: N802

    def parse(self, body: bytes | bytearray) -> Chat: ...

    def error_body(self, error: RequestError) -> bytes: ...

    def error_event(self, error: RequestError) -> bytes: ...
