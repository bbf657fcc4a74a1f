"""Checks that the parser of `coe` accepts the words of a command. Nothing is run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import chdir
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scripts.reference.sources import command

_NAMED = re.compile(r"--?[A-Za-z][A-Za-z-]*")


def mistakes(words: list[str]) -> Iterator[str]:
    """Yield what is wrong with a `coe` command: an unknown verb or option, a wrong value, a missing argument."""
    wrong = list(unknown_words(words))
    yield from wrong
    if wrong or "--help" in words:
        return
    node, path, rest = _command(words)
    with TemporaryDirectory() as folder, chdir(folder):
        for word in rest:
            _make(word)
        try:
            with node.make_context(path, rest):
                if getattr(node, "commands", None) and not node.invoke_without_command:
                    yield f"{path}: a verb is missing"
        except Exception as error:  # the parser's own, whose class Typer does not name
            why = str(getattr(error, "message", "") or error).partition("\n")[0]
            yield f"coe {' '.join(words)}: {why}"


def unknown_words(words: list[str]) -> Iterator[str]:
    """The verbs and options that do not exist; a mention of a command in a sentence need not be complete."""
    node, path, rest = _command(words)
    if getattr(node, "commands", None) and rest and re.fullmatch(r"[a-z-]+", rest[0]) and rest[0][0] != "-":
        yield f"{path} has no verb {rest[0]!r}"
        return
    options = {name for one in node.params for name in (*one.opts, *one.secondary_opts)} | {"--help"}
    for word in rest:
        name = word.partition("=")[0]
        if _NAMED.fullmatch(name) and name not in options:
            yield f"{path} has no option {name}"


def _command(words: list[str]) -> tuple[Any, str, list[str]]:
    """The command that the first words name, its path, and the words after it."""
    node, path, rest = _root(), "coe", list(words)
    while rest and rest[0] in (getattr(node, "commands", None) or ()):
        name = rest.pop(0)
        node, path = node.commands[name], f"{path} {name}"
    return node, path, rest


@cache
def _root() -> Any:
    return command()


def _make(word: str) -> None:
    """An empty file for a word that names one, since some options look for it or for its folder."""
    path = Path(word)
    if path.suffix and not path.is_absolute() and ".." not in path.parts and not word.startswith("-"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
