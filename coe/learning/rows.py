"""Rows of a data file, JSON Lines or parquet, each with the number by which an error can name it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from coe.errors import DataError


def numbered_rows(path: Path, *, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Any]]:
    """(number from 1, row) pairs in file order; of parquet only `columns` are read. Raises DataError.

    Rows of JSON Lines are whatever JSON they hold, to be checked by the caller.
    """
    if path.suffix == ".parquet":
        yield from _parquet(path, columns)
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield number, orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    raise DataError(f"{path}:{number}: not JSON: {error}") from None


def _parquet(path: Path, columns: Sequence[str] | None) -> Iterator[tuple[int, Any]]:
    from pyarrow import ArrowException, parquet

    try:
        rows = parquet.read_table(path, columns=columns).to_pylist()
    except (ArrowException, OSError) as error:
        wanted = f" with the columns {', '.join(columns)}" if columns else ""
        raise DataError(f"{path}: cannot be read as parquet{wanted}: {error}") from error
    yield from enumerate(rows, start=1)
