"""The APIs that clients use. A `Dialect` parses the requests of one API and writes its errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from coe.core import Api, Chat
from coe.errors import RequestError
from coe.experts.http import sse


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API's form of requests and errors."""

    api: Api
    parse: Callable[[bytes | bytearray], Chat]
    """Returns the routing view of a body. Raises an InvalidRequest that names the field."""
    error_body: Callable[[RequestError], bytes]
    error_event: Callable[[RequestError], bytes]
    """An error as the last event of a stream."""
    keep_alive: bytes = sse.COMMENT
    """Bytes that keep a silent stream alive; clients of the API ignore them."""
    forms: bool = False
    """True if a body may be a multipart form."""
