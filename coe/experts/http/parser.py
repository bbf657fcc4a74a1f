"""HTTP/1.1 answers as bytes arrive: the head, then the body by length, by chunks or to the end of the connection.

Pure: no input or output here. The rules are those of RFC 9112; what breaks them raises ProtocolError.
"""

from __future__ import annotations

from collections.abc import Callable

LONGEST_HEAD = 64 * 1024
LONGEST_LINE = 4096
"""Bytes of the line that opens a chunk, its extensions included, and of one line of the trailer."""
MOST_TRAILERS = 64
MAX_INFORMATIONAL = 16
"""Answers 1xx before the final one."""
_HEX = b"0123456789abcdefABCDEF"


class ProtocolError(ConnectionError):
    """The server's bytes are not HTTP/1.1."""


class ResponseParser:
    """One answer, fed with bytes until `complete`. What a `feed` returns is body.

    `headers` has lower-case names; values of a name that comes twice are joined by a comma. `reusable` says whether
    another request may follow on the connection once the answer is complete.
    """

    __slots__ = (
        "_buffer",
        "_informational",
        "_inside",
        "_left",
        "_step",
        "_trailers",
        "complete",
        "headers",
        "reusable",
        "status",
    )

    def __init__(self) -> None:
        self.status = 0
        """0 until the head is there."""
        self.headers: dict[str, str] = {}
        self.reusable = False
        self.complete = False
        self._buffer = b""
        self._left = 0
        self._inside = False
        self._trailers = 0
        self._informational = 0
        self._step: Callable[[ResponseParser, bytes], bytes] = (
            ResponseParser._head
        )  # bound to this one it would hold it in a circle

    def feed(self, data: bytes) -> bytes:
        """Raises ProtocolError."""
        if self.complete:
            raise ProtocolError("bytes after the end of the answer")
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        return self._step(self, data)

    def end(self) -> None:
        """The connection is at its end. Raises ProtocolError unless the answer may end with it."""
        if self._step is not ResponseParser._rest or not self.status:
            raise ProtocolError("the connection ended in mid-answer")
        self.complete = True

    def _head(self, data: bytes) -> bytes:
        """Read heads until the final one; those before it are informational (1xx)."""
        while data:
            status, rest = self._next_head(data)
            if status >= 200:
                return self._step(self, rest) if rest or self.complete else b""
            data = rest
        return b""

    def _next_head(self, data: bytes) -> tuple[int, bytes]:
        """The status of a head and the bytes after it; 0 and none while it is not whole."""
        end = data.find(b"\r\n\r\n", 0, LONGEST_HEAD)
        if end < 0:
            if len(data) >= LONGEST_HEAD:
                raise ProtocolError("a head that is too long")
            self._buffer = data
            return 0, b""
        first, *lines = data[:end].split(b"\r\n")
        version, _, told = first.partition(b" ")
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or not told[:3].isdigit() or told[3:4] not in (b"", b" "):
            raise ProtocolError("something that is not an HTTP/1.1 answer")
        status, headers = int(told[:3]), _headers(lines)
        if status < 100:
            raise ProtocolError("a status that is none")
        if 100 <= status < 200:
            if status == 101:
                raise ProtocolError("another protocol than was asked for")
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL:
                raise ProtocolError("informational answers without end")
            return status, data[end + 4 :]
        self.status, self.headers = status, headers
        wish = headers.get("connection", "").lower()
        self.reusable = "close" not in wish and (version == b"HTTP/1.1" or "keep-alive" in wish)
        self._frame()
        return status, data[end + 4 :]

    def _frame(self) -> None:
        """How the body ends."""
        coding, length = self.headers.get("transfer-encoding"), self.headers.get("content-length")
        if coding is not None and length is not None:
            raise ProtocolError("both a content-length and a transfer-encoding")
        if self.status in (204, 304):
            self._step, self.complete = ResponseParser._over, True
        elif coding is not None:
            if coding.lower() != "chunked":
                raise ProtocolError("a transfer coding other than chunked")
            self._step = ResponseParser._chunks
        elif length is None:
            self._step, self.reusable = ResponseParser._rest, False
        else:
            lengths = {part.strip() for part in length.split(",")}
            size = lengths.pop()
            if lengths or not size.isascii() or not size.isdigit() or len(size) > 18:
                raise ProtocolError("a content-length that is none")
            self._left = int(size)
            self._step, self.complete = ResponseParser._counted, not self._left

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise ProtocolError("more bytes than its content-length")
        self.complete = not self._left
        return data

    def _rest(self, data: bytes) -> bytes:
        return data

    def _over(self, data: bytes) -> bytes:
        if data:
            raise ProtocolError("bytes after the end of the answer")
        return b""

    def _chunks(self, data: bytes) -> bytes:
        """As many chunks as `data` holds; `_left` counts the bytes left of the one under way."""
        found, at = [], 0
        while True:
            if self._left:
                found.append(data[at : at + self._left])
                at += len(found[-1])
                self._left -= len(found[-1])
                if self._left:
                    break
            start = at + 2 if self._inside else at
            if self._inside and data[at:start] != b"\r\n"[: len(data) - at]:
                raise ProtocolError("a chunk longer than its size")
            line = data.find(b"\n", start, start + LONGEST_LINE)
            if line < 0:
                break
            self._left, self._inside, at = _chunk_size(data[start:line]), True, line + 1
            if not self._left:
                self._step = ResponseParser._trailer
                self._trailer(data[at:])
                return b"".join(found)
        self._keep(data[at:])
        return found[0] if len(found) == 1 else b"".join(found)

    def _trailer(self, data: bytes) -> bytes:
        while (line := data.find(b"\n", 0, LONGEST_LINE)) >= 0:
            self._trailers += 1
            if data[:line] in (b"\r", b""):
                self.complete = True
                if len(data) > line + 1:
                    raise ProtocolError("bytes after the end of the answer")
                return b""
            if self._trailers > MOST_TRAILERS:
                raise ProtocolError("trailers without end")
            data = data[line + 1 :]
        self._keep(data)
        return b""

    def _keep(self, data: bytes) -> None:
        if len(data) >= LONGEST_LINE:
            raise ProtocolError("a line that is too long")
        self._buffer = data


def _headers(lines: list[bytes]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or name.strip() != name:
            raise ProtocolError("a head with a line that is no header")
        key, text = name.lower().decode("latin-1"), value.strip().decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not digits or len(digits) > 15 or digits.strip(_HEX):
        raise ProtocolError("a chunk without a size")
    return int(digits, 16)
