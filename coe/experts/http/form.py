"""A multipart form, which is written anew for the expert's server, so that the server reads what the gateway read.

Parsers of forms disagree about repeated headers and parameters, folded lines, bare line feeds, and text between parts.
Nothing of that is sent on: each part gets one head in one form, the boundary is drawn at random, and the only field
`model` is the gateway's.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterator

MAX_PARTS = 256
MAX_HEAD_BYTES = 2**13
"""Bytes of the headers of a part."""
MODEL = "model"
_DELIMITER = rb"--([0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-])"
_BOUNDARY = re.compile(_DELIMITER + rb"\r\n")
"""The first line of a form (RFC 2046, section 5.1.1)."""
_EMPTY = re.compile(_DELIMITER + rb"--\s*\Z")
"""A form without parts."""
_HEADER = re.compile(rb"([!-9;-~]+):[ \t]*([^\x00-\x1f\x7f]*)")
_DISPOSITION = re.compile(
    rb'form-data; *name=("?)((?!_charset_)[\w.-]+(?:\[[\w.-]*\])*)\1'
    rb'(?:; *filename=(?:"((?:\\"|[^"\x00-\x1f\x7f])*)"|([^"; \x00-\x1f\x7f]+))(?:; *filename\*=[^"; ]+)?)? *',
    re.IGNORECASE,
)
"""A name, and the name of a file, which .NET repeats in `filename*`. The field `_charset_` changes what others mean."""
_MEDIA_TYPE = re.compile(rb"(?!multipart/|message/)[ -~]*", re.IGNORECASE)
"""A type of content that no parser takes for further parts."""
_PLAIN_ENCODINGS = (b"", b"7bit", b"8bit", b"binary")


class FormBody(dict[str, str]):
    """The value of the field `model` if the form has it. Raises ValueError for a body that is not a form, or that
    parsers may read in different ways."""

    def __init__(self, body: bytes | bytearray) -> None:
        super().__init__()
        empty = _EMPTY.match(body)
        first = empty or _BOUNDARY.match(body)
        if first is None:
            raise ValueError("it does not begin with a boundary")
        self.size = len(body)
        self._body = body
        self._boundary = secrets.token_hex(16)
        self._parts: list[tuple[str, bytes, int, int]] = []
        """Bare name, head to send, and begin and end of the value of each part but `model`."""
        for begin, end in () if empty else self._delimited(first[1]):
            self._read_part(begin, end)

    @property
    def content_type(self) -> str:
        return f"multipart/form-data; boundary={self._boundary}"

    @property
    def names(self) -> list[str]:
        """Names of the other fields and files; `list` for `list[]`."""
        return [name for name, *_ in self._parts]

    def with_model(self, model: str, *, leave_out: Collection[str] = ()) -> bytes:
        """The form with this model, without the fields of some of the other `names`."""
        delimiter, body = b"--%b" % self._boundary.encode(), memoryview(self._body)
        chunks: list[bytes | memoryview] = [delimiter, _head(MODEL.encode()), model.encode()]
        for name, head, begin, end in self._parts:
            if name not in leave_out:
                chunks += (b"\r\n", delimiter, head, body[begin:end])
        return b"".join((*chunks, b"\r\n", delimiter, b"--\r\n"))

    def _delimited(self, boundary: bytes) -> Iterator[tuple[int, int]]:
        """Yields begin and end of each part, headers included."""
        delimiter = b"\r\n--" + boundary
        begin = len(delimiter)
        for _ in range(MAX_PARTS):
            end = self._body.find(delimiter, begin - 2)
            if end < 0:
                raise ValueError("its last part does not end")
            yield begin, end
            begin = end + len(delimiter) + 2
            line_end = self._body[begin - 2 : begin]
            if line_end == b"--":
                return
            if line_end != b"\r\n":
                raise ValueError("its boundary is part of its content")
        raise ValueError(f"it has more than {MAX_PARTS} parts")

    def _read_part(self, begin: int, end: int) -> None:
        blank = self._body.find(b"\r\n\r\n", begin, min(end, begin + MAX_HEAD_BYTES))
        if blank < 0:
            raise ValueError("a part of it has no end of its headers")
        headers: dict[bytes, bytes] = {}
        for line in bytes(self._body[begin:blank]).split(b"\r\n"):
            header = _HEADER.fullmatch(line)
            if header is None or header[1].lower() in headers:
                raise ValueError("a part of it has a broken or repeated header")
            headers[header[1].lower()] = header[2].rstrip()
        disposition = _DISPOSITION.fullmatch(headers.get(b"content-disposition", b""))
        if disposition is None:
            raise ValueError('a part of it is not declared as form-data; name="NAME"; filename="FILE"')
        if headers.get(b"content-transfer-encoding", b"").lower() not in _PLAIN_ENCODINGS:
            raise ValueError("a part of it has a content-transfer-encoding")
        media_type = headers.get(b"content-type", b"")
        if not _MEDIA_TYPE.fullmatch(media_type):
            raise ValueError("a part of it has a content-type of several parts")
        name, quoted, plain = disposition[2], disposition[3], disposition[4]
        file_name = plain if quoted is None else quoted
        bare_name = name.partition(b"[")[0].decode()  # some parsers read x[] and x[0] as x
        if bare_name.casefold() != MODEL:
            self._parts.append((bare_name, _head(name, file_name, media_type), blank + 4, end))
        elif MODEL in self or bare_name.encode() != name:
            raise ValueError("it has the field model twice")
        elif file_name is not None:
            raise ValueError("its model is a file")
        else:
            self[MODEL] = self._body[blank + 4 : end].decode()


def _head(name: bytes, file_name: bytes | None = None, media_type: bytes = b"") -> bytes:
    """The headers of a part, with the blank line after them."""
    head = b'\r\nContent-Disposition: form-data; name="%b"' % name
    if file_name is not None:
        head += b'; filename="%b"' % file_name.replace(b'\\"', b"%22").replace(b"\\", b"%5C")
    if media_type:
        head += b"\r\nContent-Type: " + media_type
    return head + b"\r\n\r\n"
