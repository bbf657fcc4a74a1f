"""The command's own errors of usage, which repeat words of the command line such as file names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from coe.terminal import printable


class PrintableGroup(TyperGroup):
    """A group whose errors, and those of all commands in it, are printable."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        with _printable():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        with _printable():
            return super().invoke(ctx)


_UsageError: Any = typer.BadParameter.__base__
"""Typer brings its own copy of click, whose classes it does not name."""


@contextmanager
def _printable() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        error.message = printable(error.message)
        raise
