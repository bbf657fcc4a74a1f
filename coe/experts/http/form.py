"""A multipart form that reaches the expert's server unchanged, except for the value of its field `model`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

MAX_PARTS = 256
MAX_FIELD_BYTES = 2**16
"""Bytes of a part that counts as a field; longer ones are files."""
MAX_HEADER_BYTES = 2**13
"""Bytes of the headers of a part."""
_DELIMITER = rb"--([0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-])"
_BOUNDARY = re.compile(_DELIMITER + rb"\r\n")
"""The first line of a form (RFC 2046, section 5.1.1)."""
_EMPTY = re.compile(_DELIMITER + rb"--\s*\Z")
"""A form without parts."""
_DISPOSITION = re.compile(rb"^content-disposition:\s*form-data\b(.*)$", re.IGNORECASE | re.MULTILINE)
_NAME = re.compile(rb';\s*name="?([^";\r\n]*)"?', re.IGNORECASE)
_FILE = re.compile(rb";\s*filename\*?=", re.IGNORECASE)


class FormBody(Mapping[str, Any]):
    """The fields of a form by name, without its files. A repeated name has its last value.

    Raises ValueError for a body that is not a form.
    """

    def __init__(self, body: bytes | bytearray) -> None:
        empty = _EMPTY.match(body)
        first = empty or _BOUNDARY.match(body)
        if first is None:
            raise ValueError("it does not begin with a boundary")
        self._boundary = first[1]
        self.size = len(body)
        self._body: bytes | bytearray = body
        self._fields: dict[str, str] = {}
        self._model: tuple[int, int] | None = None
        """Begin and end of the value of `model`."""
        for begin, end in () if empty else self._parts():
            self._read_part(begin, end)

    @property
    def content_type(self) -> str:
        return f'multipart/form-data; boundary="{self._boundary.decode("ascii")}"'

    def with_model(self, name: str) -> bytes:
        """The form with this value of `model`."""
        body, value = self._body, name.encode()
        if self._model is not None:
            begin, end = self._model
            return b"".join((body[:begin], value, body[end:]))
        part = b'--%b\r\ncontent-disposition: form-data; name="model"\r\n\r\n%b\r\n' % (self._boundary, value)
        return part + body

    def _parts(self) -> Iterator[tuple[int, int]]:
        """Yields begin and end of each part, headers included."""
        delimiter = b"\r\n--" + self._boundary
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
        blank = self._body.find(b"\r\n\r\n", begin, min(end, begin + MAX_HEADER_BYTES))
        if blank < 0:
            raise ValueError("a part of it has no end of its headers")
        found = _DISPOSITION.search(bytes(self._body[begin:blank]))
        name = _NAME.search(found[1]) if found else None
        if found is None or name is None:
            raise ValueError("a part of it has no name")
        value = blank + 4
        if _FILE.search(found[1]) or end - value > MAX_FIELD_BYTES:
            return
        if name[1] == b"model":
            if self._model is not None:
                raise ValueError("it has the field model twice")
            self._model = value, end
        self._fields[name[1].decode("utf-8", "replace")] = self._body[value:end].decode("utf-8", "replace")

    def __getitem__(self, name: str) -> str:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)
