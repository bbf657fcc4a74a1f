"""A multipart form, which is written anew for the expert's server, so that the server reads what the gateway read.

Parsers of forms disagree about repeated headers and parameters, folded lines, bare line feeds, and text between parts.
Nothing of that is sent on: each part gets one head in one form, the boundary is drawn at random, and the only field
`model` is the gateway's.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection

MAX_PARTS = 256
MAX_HEAD_BYTES = 2**13
"""Bytes of the headers of a part."""
MODEL = "model"
_BOUNDARY = re.compile(rb"--[0-9A-Za-z'()+_,./:=? -]{0,69}?[0-9A-Za-z'()+_,./:=?-](?=\r\n|--\s*\Z)")
"""The beginning of a form (RFC 2046, section 5.1.1)."""
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
        first = _BOUNDARY.match(body)
        if first is None:
            raise ValueError("it does not begin with a boundary")
        self.size = len(body)
        self._boundary = secrets.token_hex(16)
        self._parts: list[tuple[str, bytes, memoryview]] = []
        """Bare name, head to send, and value of each part but `model`."""
        delimiter, view, begin = b"\r\n" + first[0], memoryview(body), len(first[0])
        for _ in range(MAX_PARTS + 1):
            line_end = body[begin : begin + 2]
            if line_end == b"--":
                return
            if line_end != b"\r\n":
                raise ValueError("its boundary is part of its content")
            if (end := body.find(delimiter, begin)) < 0:
                raise ValueError("its last part does not end")
            blank = body.find(b"\r\n\r\n", begin + 2, min(end, begin + MAX_HEAD_BYTES))
            if blank < 0:
                raise ValueError("a part of it has no end of its headers")
            self._add_part(bytes(body[begin + 2 : blank]), view[blank + 4 : end])
            begin = end + len(delimiter)
        raise ValueError(f"it has more than {MAX_PARTS} parts")

    @property
    def content_type(self) -> str:
        return f"multipart/form-data; boundary={self._boundary}"

    @property
    def names(self) -> list[str]:
        """Names of the other fields and files; `list` for `list[]`."""
        return [name for name, *_ in self._parts]

    def with_model(self, model: str, *, leave_out: Collection[str] = ()) -> bytes:
        """The form with this model, without the fields of some of the other `names`."""
        delimiter = b"--%b" % self._boundary.encode()
        chunks: list[bytes | memoryview] = [delimiter, _head(MODEL.encode()), model.encode()]
        for name, head, value in self._parts:
            if name not in leave_out:
                chunks += (b"\r\n", delimiter, head, value)
        return b"".join((*chunks, b"\r\n", delimiter, b"--\r\n"))

    def _add_part(self, head: bytes, value: memoryview) -> None:
        headers: dict[bytes, bytes] = {}
        for line in head.split(b"\r\n"):
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
            self._parts.append((bare_name, _head(name, file_name, media_type), value))
        elif MODEL in self or bare_name.encode() != name:
            raise ValueError("it has the field model twice")
        elif file_name is not None:
            raise ValueError("its model is a file")
        else:
            self[MODEL] = bytes(value).decode()


def _head(name: bytes, file_name: bytes | None = None, media_type: bytes = b"") -> bytes:
    """The headers of a part, with the blank line after them."""
    head = b'\r\nContent-Disposition: form-data; name="%b"' % name
    if file_name is not None:
        head += b'; filename="%b"' % file_name.replace(b'\\"', b"%22").replace(b"\\", b"%5C")
    if media_type:
        head += b"\r\nContent-Type: " + media_type
    return head + b"\r\n\r\n"
