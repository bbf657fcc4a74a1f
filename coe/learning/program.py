"""The program in an answer: the Python a model wrote, without the prose around it."""

from __future__ import annotations

import ast
import re

MOST_LINES = 5_000
"""Lines of an answer without fences that are searched for a program."""
_FENCE = re.compile(
    r"^[ \t]{0,3}(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]{0,3}\1|\Z)", re.MULTILINE | re.DOTALL
)
_PYTHON = ("", "python", "py", "python3")
_BEGINS = re.compile(r"(?:async def|def|class|import|from|@)\b|@")


def program_of(answer: str) -> str:
    """The Python of an answer; empty when there is none.

    Of fenced blocks, those that define something (the others are mostly examples of use), or else all; a last fence may
    be left open. Without fences, the answer from its first definition or import to the last line that still parses.
    """
    blocks = [match[3] for match in _FENCE.finditer(answer) if match[2].lower() in _PYTHON]
    if blocks:
        return "\n".join([block for block in blocks if _defines(block)] or blocks)
    return _unfenced(answer.splitlines()[:MOST_LINES])


def _defines(block: str) -> bool:
    tree = _parsed(block)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return tree is not None and any(isinstance(node, kinds) for node in tree.body)


def _unfenced(lines: list[str]) -> str:
    first = next((index for index, line in enumerate(lines) if _BEGINS.match(line)), None)
    if first is None:
        whole = "\n".join(lines)
        return whole if _parsed(whole) else ""
    kept = lines[first:]
    while kept:
        program = "\n".join(kept)
        try:
            ast.parse(program)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            # what follows the mistake cannot be part of the program either: cut there, one line at the least
            place = getattr(error, "lineno", None) or len(kept)
            kept = kept[: min(place, len(kept)) - 1]
        else:
            return program
    return ""


def _parsed(program: str) -> ast.Module | None:
    try:
        return ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
