"""The outcomes of requests that are an expert's failures."""

from __future__ import annotations

from collections.abc import Iterator

from coe.errors import DeadlineExceeded, ExpertError


def _codes(kind: type[ExpertError]) -> Iterator[str]:
    yield kind.code
    for below in kind.__subclasses__():
        yield from _codes(below)


FAILURES: tuple[str, ...] = tuple(dict.fromkeys((*_codes(ExpertError), DeadlineExceeded.code, "internal_error")))
