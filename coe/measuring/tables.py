"""Reads and writes data files: tables of named columns, numbered rows, and labelled prompts.

Reads parquet, JSON Lines and CSV, and writes parquet. Every error names the file and the row.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from coe.artifacts.manifest import replace_file
from coe.errors import ConfigError, DataError, pip_install

SUFFIXES = (".parquet", ".jsonl", ".csv")
MAX_CSV_FIELD_CHARACTERS = 2**31 - 1
"""Characters of a CSV field; the reader's default is less than a long prompt."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Columns of equal length; a column that the file lacks reads as empty."""

    path: Path
    columns: dict[str, list[Any]]
    length: int

    def texts(self, name: str) -> list[str]:
        """A column as text, "" for null and for the NaN that pandas writes."""
        return ["" if value is None or value != value else str(value) for value in self._column(name)]

    def numbers(self, name: str) -> list[float]:
        """A column as numbers, NaN where empty. Raises DataError on anything else."""
        found = []
        for row, value in enumerate(self._column(name), start=1):
            try:
                found.append(float("nan") if value is None or value == "" else float(value))
            except (TypeError, ValueError):
                raise DataError(f"{self.path}: row {row}: {name} is {value!r}, not a number") from None
        return found

    def where(self, name: str, value: str) -> Table:
        """The rows whose `name` is `value`; all rows where the file has no such column."""
        if name not in self.columns:
            return self
        kept = [row for row, found in enumerate(self.texts(name)) if found == value]
        return Table(self.path, {key: [column[i] for i in kept] for key, column in self.columns.items()}, len(kept))

    def cells(self, prompt_ids: Iterable[str], models: Iterable[str]) -> NDArray[np.int64]:
        """The row, prompt and model, by index, of each row of one of these prompts and models, shape (3, n_rows)."""
        number = {prompt_id: row for row, prompt_id in enumerate(prompt_ids)}
        column = {model: index for index, model in enumerate(models)}
        names = zip(self.texts("prompt_id"), self.texts("model"), strict=True)
        cells = [(row, number[p], column[m]) for row, (p, m) in enumerate(names) if p in number and m in column]
        return np.array(cells, dtype=np.int64).reshape(-1, 3).T

    def _column(self, name: str) -> Sequence[Any]:
        return self.columns.get(name) or [None] * self.length


def find_table(folder: Path, name: str) -> Path | None:
    """The file `name` with one of the known suffixes in `folder`; None where there is none."""
    paths = (folder / f"{name}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def needed_table(folder: Path, name: str, *, needed: Sequence[str]) -> Table:
    """Read the file that `find_table` finds as `read_table` does; raises DataError if there is none."""
    if (path := find_table(folder, name)) is None:
        raise DataError(f"{folder}: no {name} file; expected {', '.join(f'{name}{suffix}' for suffix in SUFFIXES)}")
    return read_table(path, needed=needed)


def optional_table(folder: Path, name: str, *, needed: Sequence[str], benchmark: str) -> Table | None:
    """Read the rows of a benchmark in the file that `find_table` finds; None where there is no such file."""
    path = find_table(folder, name)
    return None if path is None else read_table(path, needed=needed).where("benchmark", benchmark)


def read_table(path: Path, *, needed: Sequence[str]) -> Table:
    """All rows of a file. Raises DataError when it cannot be read, is empty or lacks a column of `needed`."""
    rows = [row for _, row in numbered_rows(path)]
    if wrong := [row for row in rows if not isinstance(row, dict)]:
        raise DataError(f"{path}: cannot be read: {wrong[0]!r} is not an object")
    if not rows:
        raise DataError(f"{path}: holds no rows")
    columns = {name: [row.get(name) for row in rows] for name in {name for row in rows for name in row}}
    if missing := [name for name in needed if name not in columns]:
        raise DataError(f"{path}: lacks the column {', '.join(missing)}; it has {', '.join(sorted(columns))}")
    return Table(path, columns, len(rows))


PARQUET_BATCH_ROWS = 2_000
"""Parquet rows in memory at a time."""


def numbered_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(number from 1, row) pairs in file order. Raises DataError.

    Rows of JSON Lines are any JSON; the caller checks them. Rows of CSV have text alone, numbered by line.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    yield from {".parquet": _parquet_rows, ".csv": _csv_rows}.get(path.suffix, _json_rows)(path)


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield number, orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    raise DataError(f"{path}:{number}: not JSON: {error}") from None


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    csv.field_size_limit(MAX_CSV_FIELD_CHARACTERS)
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True)
        for row in reader:
            yield reader.line_num, {name: value for name, value in row.items() if name is not None}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    from pyarrow import ArrowException, parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
                yield from enumerate(batch.to_pylist(), start=number + 1)
                number += len(batch)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet: {error}") from error


def require_parquet() -> None:
    """Raises ConfigError where pyarrow is missing; call it before work whose result is a parquet file."""
    if find_spec("pyarrow") is None:
        raise ConfigError(f"parquet files need pyarrow; run: {pip_install('plan')}")


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same columns in one step; without rows, remove the file."""
    import pyarrow
    from pyarrow import parquet

    if not rows:
        path.unlink(missing_ok=True)
        return
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, compression="zstd")
    replace_file(path, buffer.getvalue())


def numbered_prompts(path: Path) -> list[tuple[int, str, str]]:
    """All (line, prompt, category) rows in file order. Raises DataError with the file, the line and the problem."""
    found = []
    for number, row in numbered_rows(path):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("prompt", "category")):
            raise DataError(f"{path}:{number}: expected text under the keys prompt and category")
        found.append((number, row["prompt"], row["category"]))
    if not found:
        raise DataError(f"{path}: holds no prompts")
    return found


def pairs_digest(pairs: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of the pairs in order."""
    total = hashlib.sha256()
    for pair in pairs:
        total.update(orjson.dumps(pair))
    return total.hexdigest()
