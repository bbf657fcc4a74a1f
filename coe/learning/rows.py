"""Rows of a data file, JSON Lines or parquet, each with the number by which an error can name it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from coe.errors import DataError

PAGE = 2_000
"""Parquet rows in memory at a time."""


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
        with parquet.ParquetFile(path) as file:
            if missing := set(columns or ()) - set(file.schema_arrow.names):
                raise DataError(f"{path}: it lacks the columns {', '.join(sorted(missing))}")
            number = 0
            for batch in file.iter_batches(batch_size=PAGE, columns=columns):
                yield from enumerate(batch.to_pylist(), start=number + 1)
                number += len(batch)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet: {error}") from error
