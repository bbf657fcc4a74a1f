"""How much litellm may take in of an answer: the bounds of those that come without it, counted on the bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar

from coe.experts.http.expert import LONGEST_REFUSAL
from coe.experts.http.replies import MAX_ANSWER
from coe.experts.http.sse import MAX_EVENT

Take = Callable[[bytes], bytes | None]
"""Gives back the next piece of a body, None where enough has come. Raises Excess."""
_BLANKS = (b"\n\n", b"\n\r\n", b"\r\r")


class Excess(Exception):
    """A server sent more than it may."""


class Intake:
    """What the responses to one call may bring. Once one brought more, `excess` says how."""

    def __init__(self, *, stream: bool) -> None:
        self._stream = stream
        self.excess = ""

    def begin(self) -> None:
        """For whatever is asked from now on in this task, and in the threads that it hands work to."""
        _INTAKE.set(self)

    def taking(self, status: int, headers: Mapping[str, str]) -> Take:
        """For the body after this head. A compressed one was not asked for, and may unpack to any length."""
        codings = {coding.strip().lower() for coding in headers.get("content-encoding", "").split(",")}
        compressed = not codings <= {"", "identity"}
        if not 200 <= status < 300:
            return _Refusal(0 if compressed else LONGEST_REFUSAL).take
        if compressed:
            raise self.exceeded("a compressed answer, which was not asked for")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        return _Events(self).take if self._stream and kind == "text/event-stream" else _Whole(self).take

    def exceeded(self, how: str) -> Excess:
        self.excess = how
        return Excess(how)


_INTAKE: ContextVar[Intake] = ContextVar("intake")


def intake() -> Intake:
    """That of the call which this task is at work for; the narrowest where it is for none."""
    return _INTAKE.get(None) or Intake(stream=False)


class _Refusal:
    """The reason of an error: read so far and no farther, since the status tells what is done next."""

    def __init__(self, most: int) -> None:
        self._left = most

    def take(self, piece: bytes) -> bytes | None:
        taken = piece[: self._left]
        self._left -= len(taken)
        return taken or None


class _Whole:
    """An answer in one piece, or a stream of another kind than server-sent events."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._size = 0

    def take(self, piece: bytes) -> bytes:
        self._size += len(piece)
        if self._size > MAX_ANSWER:
            raise self._intake.exceeded("an answer longer than it may be")
        return piece


class _Events:
    """Server-sent events, any number of them."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._size = 0
        self._end = b""

    def take(self, piece: bytes) -> bytes:
        seam = self._end + piece  # a blank line may come in two pieces
        blank = max(seam.rfind(blank) for blank in _BLANKS)
        self._size = self._size + len(piece) if blank < 0 else len(seam) - blank
        self._end = seam[-2:]
        if self._size > MAX_EVENT:
            raise self._intake.exceeded(f"a broken event stream (an event is longer than {MAX_EVENT} bytes)")
        return piece
