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
    if "--help" in words:
        yield from unknown_words(words)
        return
    with TemporaryDirectory() as folder, chdir(folder):
        for word in words:
            _make(word)
        try:
            _parse(_root(), "coe", list(words), None)
        except Exception as error:  # the parser's own, whose class Typer does not name
            why = str(getattr(error, "message", "") or error).partition("\n")[0]
            yield f"coe {' '.join(words)}: {why}"


def unknown_words(words: list[str]) -> Iterator[str]:
    """The verbs and options that do not exist; a mention of a command in a sentence need not be complete."""
    node, path, rest = _root(), "coe", list(words)
    while rest and getattr(node, "commands", None) and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in node.commands:
            if re.fullmatch(r"[a-z-]+", name):
                yield f"{path} has no verb {name!r}"
            return
        node, path = node.commands[name], f"{path} {name}"
    options = {name for one in node.params for name in (*one.opts, *one.secondary_opts)} | {"--help"}
    for word in rest:
        name = word.partition("=")[0]
        if _NAMED.fullmatch(name) and name not in options:
            yield f"{path} has no option {name}"


@cache
def _root() -> Any:
    return command()


def _parse(node: Any, name: str, words: list[str], parent: Any) -> None:
    below = getattr(node, "commands", None)
    with node.make_context(name, words, parent=parent) as context:
        rest = [*getattr(context, "_protected_args", ()), *context.args] if below is not None else []
        if rest:
            child_name, child, others = node.resolve_command(context, rest)
            _parse(child, f"{name} {child_name}", others, context)
        elif below is not None and not node.invoke_without_command:
            raise ValueError("a verb is missing")


def _make(word: str) -> None:
    """An empty file for a word that names one, since some options look for it or for its folder."""
    path = Path(word)
    if path.suffix and not path.is_absolute() and ".." not in path.parts and not word.startswith("-"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
