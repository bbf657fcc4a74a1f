"""Finds the fenced blocks of an answer, and its program, which `coe score` runs against tests."""

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
    """A fenced block: its language in lower case, its text, the place where it ends in the answer, and whether its
    fence is closed."""

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
    return isinstance(tree, ast.Module) and any(isinstance(node, kinds) for node in tree.body)


def _unfenced(lines: list[str]) -> str:
    first = next((index for index, line in enumerate(lines) if _PROGRAM_START.match(line)), None)
    if first is None:
        whole = "\n".join(lines)
        return whole if isinstance(_parse(whole), ast.Module) else ""
    kept = lines[first:]
    while kept:
        program = "\n".join(kept)
        error = _parse(program)
        if isinstance(error, ast.Module):
            return program
        # text after the mistake cannot belong to the program: cut there, at least one line
        kept = kept[: min(getattr(error, "lineno", None) or len(kept), len(kept)) - 1]
    return ""


def _parse(program: str) -> ast.Module | Exception:
    """Return the syntax tree, or the error of a text that is no program."""
    try:
        with warnings.catch_warnings():  # of invalid escapes
            warnings.simplefilter("ignore")
            return ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return error
