"""The times of the line's steps as a header, for requests that ask for it."""

from __future__ import annotations

from gateway.observability.attributes import steps
from gateway.request.trace import Trace


def headers_of(trace: Trace) -> list[tuple[bytes, bytes]]:
    """The response headers known so far; with x-coe-explain Server-Timing too (W3C), in milliseconds for each step that
    came to its end before the headers went out."""
    found = trace.headers()
    if trace.wishes is not None and trace.wishes.explain:
        done = [
            f"{name};dur={ended - began:.3f}" for name, began, ended, whole in steps(trace, trace.elapsed_ms()) if whole
        ]
        found.append((b"server-timing", ", ".join(done).encode()))
    return found
