"""The APIs that clients speak, each reduced to what routing reads. A dialect is a module of this package."""

from __future__ import annotations

from typing import Protocol

from coe.core import Api, Chat
from coe.errors import RequestError


class Dialect(Protocol):
    """How one API writes a request and an error. `parse` raises InvalidRequest that names the field."""

    @property
    def API(self) -> Api: ...  # noqa: N802

    def parse(self, body: bytes | bytearray) -> Chat: ...

    def error_body(self, error: RequestError) -> bytes: ...

    def error_event(self, error: RequestError) -> bytes: ...
