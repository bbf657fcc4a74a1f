"""Markdown out of plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; line breaks and bars in cells are escaped."""
    lines = [_line(head), "|" + "---|" * len(head), *(_line([_cell(cell) for cell in row]) for row in rows)]
    return "\n".join(lines)


def code(text: str) -> str:
    """Inline code; nothing for an empty text."""
    return f"`{text}`" if text else ""


def bounds(schema: Mapping[str, Any]) -> str:
    """The range that a JSON schema allows for a number, in parentheses."""
    low, high, above = schema.get("minimum"), schema.get("maximum"), schema.get("exclusiveMinimum")
    if low is not None and high is not None:
        return f" ({low:g} to {high:g})"
    least = f"{low:g} or more" if low is not None else f"more than {above:g}" if above is not None else ""
    parts = [part for part in (least, f"at most {high:g}" if high is not None else "") if part]
    return f" ({', '.join(parts)})" if parts else ""


def one_line(text: str) -> str:
    """A docstring or description on one line."""
    return " ".join(text.split())


def sentence(text: str) -> str:
    """A description as a sentence: with a capital letter and a full stop."""
    text = one_line(text)
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?:]" else ".")


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
