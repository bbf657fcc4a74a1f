"""Parses an HTTP/1.1 response incrementally, for `coe.experts.http.connection`.

It reads the head, then the body: by length, in chunks, or until the connection closes. It does no I/O: the client feeds
it the bytes that arrive. It follows RFC 9112, bounds everything that it buffers, and raises ProtocolError for invalid
bytes.
"""

from __future__ import annotations

from collections.abc import Callable

MAX_HEAD_BYTES = 64 * 1024
"""Bytes of one head."""
MAX_LINE_BYTES = 4096
"""Bytes of the line that opens a chunk, with its extensions, and of one trailer line."""
MAX_TRAILERS = 64
"""Trailer lines."""
MAX_INFORMATIONAL_RESPONSES = 16
"""Responses 1xx before the final one."""
MAX_KNOWN_LINES = 1024
"""Header lines that are remembered with their meaning: servers repeat most of them in every response."""
MAX_KNOWN_LINE_BYTES = 256
"""Bytes of such a line."""
_VARYING = frozenset(("date", "content-length"))
"""Headers whose lines are not worth remembering."""
_known_lines: dict[bytes, tuple[str, str]] = {}
_HEX = b"0123456789abcdefABCDEF"
_WHITE_SPACE = " \t\n\r\v\f"


class ProtocolError(ConnectionError):
    """The server's bytes are not a valid HTTP/1.1 response."""


class ResponseParser:
    """Parses one response; feed it bytes until `complete`.

    `headers` has lower-case names; the values of a repeated name are joined by a comma. `reusable` is true if
    another request may follow on the connection once the response is complete.
    """

    __slots__ = ("_buffer", "_in_chunk", "_informational_count", "_read", "_remaining", "_trailer_count",
                 "complete", "headers", "reusable", "status")  # fmt: skip

    def __init__(self) -> None:
        self.status = 0
        """0 until the head is parsed."""
        self.headers: dict[str, str] = {}
        self.reusable = False
        self.complete = False
        self._buffer = b""
        self._remaining = 0
        self._in_chunk = False
        self._trailer_count = 0
        self._informational_count = 0
        # The plain function: a bound method would make a reference cycle.
        self._read: Callable[[ResponseParser, bytes], bytes] = ResponseParser._read_head

    def feed(self, data: bytes) -> bytes:
        """Parses more bytes and returns those of the body. Raises ProtocolError."""
        if self.complete:
            raise ProtocolError("bytes after the end of the answer")
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        return self._read(self, data)

    def end(self) -> None:
        """The connection was closed. Raises ProtocolError unless this ends the response."""
        if self._read is not ResponseParser._read_until_close or not self.status:
            raise ProtocolError("the connection ended in the middle of the answer")
        self.complete = True

    def _read_head(self, data: bytes) -> bytes:
        """Skips informational (1xx) heads before the final one."""
        while data:
            status, rest = self._parse_head(data)
            if status >= 200:
                return self._read(self, rest) if rest or self.complete else b""
            data = rest
        return b""

    def _parse_head(self, data: bytes) -> tuple[int, bytes]:
        """Returns the status of the next head and the bytes after it; 0 while the head is incomplete."""
        end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
        if end < 0:
            if len(data) >= MAX_HEAD_BYTES:
                raise ProtocolError("a head that is too long")
            self._buffer = data
            return 0, b""
        first, *lines = data[:end].split(b"\r\n")
        version, _, status_line = first.decode("latin-1").partition(" ")
        digits = status_line[:3]
        if (
            version not in ("HTTP/1.1", "HTTP/1.0")
            or not (digits.isascii() and digits.isdigit())
            or status_line[3:4] not in ("", " ")
        ):
            raise ProtocolError("something that is not an HTTP/1.1 answer")
        status, headers = int(digits), _headers(lines)
        if status < 100:
            raise ProtocolError("an invalid status")
        if 100 <= status < 200:
            if status == 101:
                raise ProtocolError("a switch to another protocol")
            self._informational_count += 1
            if self._informational_count > MAX_INFORMATIONAL_RESPONSES:
                raise ProtocolError("too many informational answers")
            return status, data[end + 4 :]
        self.status, self.headers = status, headers
        connection = headers.get("connection", "").lower()
        self.reusable = "close" not in connection and (version == "HTTP/1.1" or "keep-alive" in connection)
        self._choose_body_reader()
        return status, data[end + 4 :]

    def _choose_body_reader(self) -> None:
        """Decides how the body ends (RFC 9112, 6.3)."""
        coding, length = self.headers.get("transfer-encoding"), self.headers.get("content-length")
        if coding is not None and length is not None:
            raise ProtocolError("both a content-length and a transfer-encoding")
        if self.status in (204, 304):
            self._read, self.complete = ResponseParser._read_nothing, True
        elif coding is not None:
            if coding.lower() != "chunked":
                raise ProtocolError("a transfer coding other than chunked")
            self._read = ResponseParser._read_chunk
        elif length is None:
            self._read, self.reusable = ResponseParser._read_until_close, False
        else:
            size, *others = {part.strip() for part in length.split(",")} if "," in length else (length,)
            if others or not size.isascii() or not size.isdigit() or len(size) > 18:
                raise ProtocolError("an invalid content-length")
            self._remaining = int(size)
            self._read, self.complete = ResponseParser._read_counted, not self._remaining

    def _read_counted(self, data: bytes) -> bytes:
        self._remaining -= len(data)
        if self._remaining < 0:
            raise ProtocolError("more bytes than its content-length")
        self.complete = not self._remaining
        return data

    def _read_until_close(self, data: bytes) -> bytes:
        return data

    def _read_nothing(self, data: bytes) -> bytes:
        if data:
            raise ProtocolError("bytes after the end of the answer")
        return b""

    def _read_chunk(self, data: bytes) -> bytes:
        """Decodes one whole chunk, as most servers send an event, and leaves anything else to `_read_chunks`."""
        line = data.find(b"\n", 0, 20)
        size = len(data) - line - 3  # of the chunk if `data` is exactly one
        if not self._in_chunk and line > 0 < size and data[:line] == b"%x\r" % size and data.endswith(b"\r\n"):
            return data[line + 1 : -2]
        return self._read_chunks(data)

    def _read_chunks(self, data: bytes) -> bytes:
        """Decodes as many chunks as `data` holds; `_remaining` counts the missing bytes of the current chunk, and
        `_in_chunk` is true until the line break after it."""
        found, at = [], 0
        while True:
            if self._remaining:
                found.append(data[at : at + self._remaining])
                at += len(found[-1])
                self._remaining -= len(found[-1])
                if self._remaining:
                    break
            if self._in_chunk:
                if data[at : at + 2] != b"\r\n"[: len(data) - at]:
                    raise ProtocolError("a chunk longer than its size")
                if len(data) < at + 2:
                    break
                self._in_chunk, at = False, at + 2
            line = data.find(b"\n", at, at + MAX_LINE_BYTES)
            if line < 0:
                break
            self._remaining, self._in_chunk, at = _chunk_size(data[at:line]), True, line + 1
            if not self._remaining:
                self._read = ResponseParser._read_trailer
                self._read_trailer(data[at:])
                return b"".join(found)
        self._store(data[at:])
        return found[0] if len(found) == 1 else b"".join(found)

    def _read_trailer(self, data: bytes) -> bytes:
        while (line := data.find(b"\n", 0, MAX_LINE_BYTES)) >= 0:
            self._trailer_count += 1
            if data[:line] in (b"\r", b""):
                self.complete = True
                if len(data) > line + 1:
                    raise ProtocolError("bytes after the end of the answer")
                return b""
            if self._trailer_count > MAX_TRAILERS:
                raise ProtocolError("too many trailers")
            data = data[line + 1 :]
        self._store(data)
        return b""

    def _store(self, data: bytes) -> None:
        if len(data) >= MAX_LINE_BYTES:
            raise ProtocolError("a line that is too long")
        self._buffer = data


def _headers(lines: list[bytes]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        key, text = _known_lines.get(line) or _header(line)
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def _header(line: bytes) -> tuple[str, str]:
    """The lower-case name and the value of a header line. Raises ProtocolError."""
    name, colon, value = line.decode("latin-1").partition(":")
    if not colon or not name or name.strip(_WHITE_SPACE) != name:
        raise ProtocolError("an invalid header")
    header = name.lower(), value.strip(_WHITE_SPACE)
    if header[0] not in _VARYING and len(line) <= MAX_KNOWN_LINE_BYTES:
        if len(_known_lines) >= MAX_KNOWN_LINES:
            _known_lines.clear()
        _known_lines[line] = header
    return header


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not digits or len(digits) > 15 or digits.strip(_HEX):
        raise ProtocolError("a chunk without a size")
    return int(digits, 16)
