"""The APIs that clients use. A `Dialect` parses the requests of one API and writes its errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from coe.core import Api, Chat
from coe.errors import RequestError
from coe.experts.http import sse


class Parse(Protocol):
    """Returns the routing view of a body. A given `model` replaces that of the body. Raises an InvalidRequest that
    names the field."""

    def __call__(self, body: bytes | bytearray, model: str = "") -> Chat: ...


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API's form of requests and errors."""

    api: Api
    parse: Parse
    error_body: Callable[[RequestError], bytes]
    error_event: Callable[[RequestError], bytes]
    """An error as the last event of a stream."""
    keep_alive: bytes = sse.COMMENT
    """Bytes that keep a silent stream alive; clients of the API ignore them."""
    forms: bool = False
    """True if a body may be a multipart form."""
