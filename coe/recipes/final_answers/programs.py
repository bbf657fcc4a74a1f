"""Finds the program in an answer, and computes its canonical form.

`coe score` runs the program against tests. `answers` compares programs of a recipe's members by their canonical forms.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

MAX_UNFENCED_LINES = 5_000
"""Lines of an answer without fences that are searched for a program."""
_FENCE = re.compile(
    r"^[ \t]{0,3}(`{3,}+|~{3,}+)[ \t]*+([\w+-]*+)[^\n]*+\n(.*?)(^[ \t]{0,3}\1|\Z)", re.MULTILINE | re.DOTALL
)
_PYTHON = ("", "python", "py", "python3")
_PROGRAM_START = re.compile(r"(?:async def|def|class|import|from|@)\b|@")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language in lower case, its text, and the place where it ends in the answer."""

    language: str
    text: str
    end: int
    is_closed: bool


def fenced_blocks(answer: str) -> Iterator[Block]:
    """Yield the fenced blocks of an answer; the last one may be left open."""
    for match in _FENCE.finditer(answer):
        yield Block(match[2].lower(), match[3], match.end(), bool(match[4]))


def program_of(answer: str) -> str:
    """The Python program in an answer; empty when there is none.

    Fenced blocks that define something are joined, or all blocks if none does: the others are mostly examples of use. A
    last fence may be left open. Without fences, the program is the text from the first definition or import to the last
    line that still parses.
    """
    blocks = [block.text for block in fenced_blocks(answer) if block.language in _PYTHON]
    if blocks:
        return "\n".join([block for block in blocks if _defines(block)] or blocks)
    return _unfenced(answer.splitlines()[:MAX_UNFENCED_LINES])


def _defines(block: str) -> bool:
    tree = _parse(block)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return tree is not None and any(isinstance(node, kinds) for node in tree.body)


def _unfenced(lines: list[str]) -> str:
    first = next((index for index, line in enumerate(lines) if _PROGRAM_START.match(line)), None)
    if first is None:
        whole = "\n".join(lines)
        return whole if _parse(whole) else ""
    kept = lines[first:]
    while kept:
        program = "\n".join(kept)
        try:
            _tree(program)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            # text after the mistake cannot belong to the program: cut there, at least one line
            place = getattr(error, "lineno", None) or len(kept)
            kept = kept[: min(place, len(kept)) - 1]
        else:
            return program
    return ""


def _tree(program: str) -> ast.Module:
    with warnings.catch_warnings():  # of invalid escapes
        warnings.simplefilter("ignore")
        return ast.parse(program)


def _parse(program: str) -> ast.Module | None:
    try:
        return _tree(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


MAX_PARSED_CHARACTERS = 5_000
"""Longer programs are compared by their text."""


def program_form(answer: str) -> str | None:
    """Return the program of an answer as a fenced block, so that equal programs have equal forms; None without one.

    Python is written from its syntax tree, without comments and docstrings; other languages lose their layout alone. Of
    several blocks, the definitions in Python count. A program that is cut off has no form.
    """
    blocks = list(fenced_blocks(answer))
    if not blocks:
        whole = answer if _PROGRAM_START.match(answer) and _is_definition(answer) else ""
        return _fenced(_unparsed(whole), "python")
    if len(blocks) > 1:
        blocks = [block for block in blocks if block.language in _PYTHON and _is_definition(block.text)]
    text = "\n".join(block.text for block in blocks)
    parsed = _unparsed(text) if all(block.language in _PYTHON for block in blocks) else None
    if parsed is not None or not all(block.is_closed for block in blocks):
        return _fenced(parsed, "python")
    return _fenced(" ".join(text.split()), "code")


def _is_definition(text: str) -> bool:
    return len(text) <= MAX_PARSED_CHARACTERS and _defines(text)


def _unparsed(program: str) -> str | None:
    tree = _parse(program) if len(program) <= MAX_PARSED_CHARACTERS else None
    if tree is None or not tree.body:
        return None
    try:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                _drop_docstring(node)
        return ast.unparse(tree)
    except (ValueError, RecursionError, MemoryError):
        return None


def _drop_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module) -> None:
    if ast.get_docstring(node, clean=False) is not None and len(node.body) > 1:
        del node.body[0]


def _fenced(program: str | None, language: str) -> str | None:
    if not program:
        return None
    longest = max((len(run) for run in re.findall("`+", program)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{program}\n{fence}"
