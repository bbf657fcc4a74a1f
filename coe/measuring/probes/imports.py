"""Reads probes from CSV tables and JSON Lines whose rows need not name a checker.

A file that is not of its format raises DataError. `probe_of` checks each row.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from coe.errors import DataError
from coe.measuring.tables import MAX_CSV_FIELD_CHARACTERS, numbered_rows
from coe.recipes.final_answers.choices import chosen
from coe.recipes.final_answers.numbers import unclear

MAX_REFERENCE_WORDS = 12
"""A longer reference is free text, which only a judge could compare."""
_ALIASES = {
    "question": "prompt",
    "input": "prompt",
    "answer": "reference",
    "expected": "reference",
    "target": "reference",
}
_FIELDS = ("id", "prompt", "category", "difficulty", "checker", "reference", "tests", "tolerance", "constraints")
_PARSERS: Mapping[str, Callable[[str], Any]] = {"tolerance": float, "constraints": orjson.loads}


def rows_of(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each row of a .csv or .jsonl file with its place. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        for line, row in _csv_rows(path) if path.suffix == ".csv" else numbered_rows(path):
            yield f"{path}:{line}", row
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from None


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Columns are the fields of a probe; a few other names of prompt and reference are known too."""
    csv.field_size_limit(MAX_CSV_FIELD_CHARACTERS)
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True)
    names = {name: _ALIASES.get(name.strip().lower(), name.strip().lower()) for name in reader.fieldnames or ()}
    if "prompt" not in names.values():
        raise DataError(f"{path}: lacks the column prompt; it has {', '.join(names) or 'no columns'}")
    for values in reader:
        row = {names[name]: value for name, value in values.items() if name in names and value}
        yield reader.line_num, {name: _cell(name, row[name]) for name in _FIELDS if name in row}


def _cell(name: str, value: str) -> Any:
    try:
        return _PARSERS.get(name, str)(value)
    except ValueError:  # `probe_of` names it
        return value


def with_checker(row: Any) -> Any:
    """Return a row with the checker that fits its reference, a letter, a number or a short text, if it names none.

    Raises ValueError if no checker fits.
    """
    if not isinstance(row, dict) or row.get("checker") is not None or row.get("reference") is None:
        return row
    reference = str(row["reference"]).strip()
    number = reference.split("####")[-1].strip()
    if unclear(reference) is None and re.fullmatch(r"\D{0,3}[\d.,/eE+-]+\D{0,3}", number):
        return row | {"checker": "numeric", "reference": number}
    if re.fullmatch(r"\(?[A-J]\)?", reference) and chosen(reference):
        return row | {"checker": "choice", "reference": chosen(reference)}
    if 0 < len(reference.split()) <= MAX_REFERENCE_WORDS:
        return row | {"checker": "contains", "reference": reference}
    raise ValueError("its reference is empty or free text, which needs its own checker")
