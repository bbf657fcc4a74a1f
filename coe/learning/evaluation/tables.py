"""Tables of named columns from parquet, JSON Lines or CSV, the same whichever it is."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from coe.errors import DataError

SUFFIXES = (".parquet", ".jsonl", ".csv")
LONGEST = 2**31 - 1
"""Characters of a field of CSV; the reader's own limit is less than a long prompt."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Columns of equal length; a column that the file lacks reads as empty."""

    path: Path
    columns: dict[str, list[Any]]
    length: int

    def texts(self, name: str) -> list[str]:
        """A column as text, "" where there is nothing: null, or the NaN that pandas writes for it."""
        return ["" if value is None or value != value else str(value) for value in self._column(name)]

    def numbers(self, name: str) -> list[float]:
        """A column as numbers, NaN where there is nothing. Raises DataError on anything else."""
        return [self._number(name, row, value) for row, value in enumerate(self._column(name), start=1)]

    def where(self, name: str, value: str) -> Table:
        """The rows whose `name` is `value`; all of them where the file has no such column."""
        if name not in self.columns:
            return self
        kept = [row for row, found in enumerate(self.texts(name)) if found == value]
        return Table(self.path, {key: [column[i] for i in kept] for key, column in self.columns.items()}, len(kept))

    def _column(self, name: str) -> Sequence[Any]:
        return self.columns.get(name) or [None] * self.length

    def _number(self, name: str, row: int, value: Any) -> float:
        if value is None or value == "":
            return float("nan")
        try:
            return float(value)
        except (TypeError, ValueError):
            raise DataError(f"{self.path}: row {row}: {name} is {value!r}, not a number") from None


def find_table(folder: Path, name: str) -> Path | None:
    """`name` with one of the known endings in `folder`, None where there is none."""
    paths = (folder / f"{name}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def needed_table(folder: Path, name: str) -> Path:
    """The same, but a DataError where there is none."""
    if (path := find_table(folder, name)) is None:
        raise DataError(f"{folder}: no {name} file; expected {', '.join(f'{name}{suffix}' for suffix in SUFFIXES)}")
    return path


def read_table(path: Path, *, needed: Sequence[str]) -> Table:
    """All rows of a file. Raises DataError when it cannot be read, is empty or lacks a column of `needed`."""
    reader = {".parquet": _parquet, ".jsonl": _json_lines, ".csv": _csv}[path.suffix]
    try:
        columns = reader(path)
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's and orjson's errors are ValueErrors
        raise DataError(f"{path}: cannot be read: {error}") from error
    if missing := [name for name in needed if name not in columns]:
        raise DataError(f"{path}: lacks the column {', '.join(missing)}; it has {', '.join(sorted(columns))}")
    length = len(columns[needed[0]])
    if not length:
        raise DataError(f"{path}: holds no rows")
    return Table(path, columns, length)


def _parquet(path: Path) -> dict[str, list[Any]]:
    from pyarrow import parquet

    columns: dict[str, list[Any]] = parquet.read_table(path).to_pydict()
    return columns


def _json_lines(path: Path) -> dict[str, list[Any]]:
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if line.strip():
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number}: not an object")
            rows.append(row)
    return {name: [row.get(name) for row in rows] for name in {key for row in rows for key in row}}


def _csv(path: Path) -> dict[str, list[Any]]:
    csv.field_size_limit(LONGEST)
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True)
    rows = list(reader)
    return {name: [row[name] for row in rows] for name in reader.fieldnames or ()}
