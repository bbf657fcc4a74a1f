"""Markdown out of plain values."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; line breaks and bars in cells are escaped."""
    lines = [_line(head), "|" + "---|" * len(head), *(_line([_cell(cell) for cell in row]) for row in rows)]
    return "\n".join(lines)


def code(text: str) -> str:
    """Inline code; nothing for an empty text."""
    return f"`{text}`" if text else ""


_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`]+`")
_GAP = "\N{NO-BREAK SPACE}"
"""Stands for a space of inline code while lines are broken."""


def wrapped(text: str) -> str:
    """A page whose paragraphs and list items are wrapped at 100 columns. Tables, headings and code stay."""
    parts = _FENCED.split(text)
    parts[::2] = ["\n\n".join(map(_wrapped, part.split("\n\n"))) for part in parts[::2]]
    return "".join(parts)


def _wrapped(part: str) -> str:
    words = part.strip()
    if not words or words.startswith(("|", "#", "<")):
        return part
    before, after = part[: len(part) - len(part.lstrip())], part[len(part.rstrip()) :]
    marks = ("- ", "  ") if words.startswith("- ") else ("", "")
    items = words.removeprefix("- ").split("\n- ") if marks[0] else [words]
    return before + "\n".join(_filled(item, *marks) for item in items) + after


def _filled(text: str, first: str, rest: str) -> str:
    whole = _CODE.sub(lambda found: found[0].replace(" ", _GAP), " ".join(text.split()))
    lines = textwrap.fill(
        whole,
        100,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return lines.replace(_GAP, " ")


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
