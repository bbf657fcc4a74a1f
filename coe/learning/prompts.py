"""Labelled prompts from a file: JSON Lines or parquet with the columns prompt and category."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import orjson

from coe.errors import DataError
from coe.learning.rows import numbered_rows


def read_prompts(path: Path) -> list[tuple[str, str]]:
    """All (prompt, category) pairs in file order. Raises DataError with the file, the line and what is wrong there."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    pairs = []
    for number, row in numbered_rows(path, columns=("prompt", "category")):
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
