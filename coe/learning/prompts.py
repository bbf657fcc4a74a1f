"""Labelled prompts from a file: JSON Lines or parquet with the columns prompt and category."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from coe.errors import DataError


def read_prompts(path: Path) -> list[tuple[str, str]]:
    """All (prompt, category) pairs in file order. Raises DataError with the file, the line and what is wrong there."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    rows = _parquet(path) if path.suffix == ".parquet" else _json_lines(path)
    pairs = []
    for number, row in rows:
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("prompt", "category")):
            raise DataError(f"{path}:{number}: expected text under the keys prompt and category")
        pairs.append((row["prompt"], row["category"]))
    if not pairs:
        raise DataError(f"{path}: holds no prompts")
    return pairs


def digest(pairs: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of the pairs in order."""
    total = hashlib.sha256()
    for pair in pairs:
        total.update(orjson.dumps(pair))
    return total.hexdigest()


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield number, orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    raise DataError(f"{path}:{number}: not JSON: {error}") from None


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(path, columns=["prompt", "category"])
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet with the columns prompt and category: {error}") from error
    yield from enumerate(table.to_pylist(), start=1)
