"""Imports probes from files whose rows need not name a checker, and whose columns may have other names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coe.errors import DataError
from coe.measuring.tables import numbered_rows
from coe.recipes.final_answers.choices import chosen
from coe.recipes.final_answers.numbers import unclear

MAX_REFERENCE_WORDS = 12
"""A longer reference is free text, which only a judge could compare."""
_ALIASES = {"question": "prompt", "input": "prompt"} | dict.fromkeys(("answer", "expected", "target"), "reference")
_CSV_FIELDS = ("id", "prompt", "category", "difficulty", "checker", "reference", "tests")


def rows_of(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each row of a .csv or .jsonl file with its place. Raises DataError."""
    for line, row in numbered_rows(path):
        if path.suffix == ".csv":
            named = {_ALIASES.get(str(name).strip().lower(), name): value for name, value in row.items()}
            if "prompt" not in named:
                raise DataError(f"{path}: lacks the column prompt; it has {', '.join(map(str, row))}")
            row = {name: named[name] for name in _CSV_FIELDS if named.get(name)}
        yield f"{path}:{line}", row


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
