"""The `coe` command: one module a verb group. Exit 0, 1 when something failed, 2 for bad usage.

The command's own errors of usage, which repeat words of the command line such as file names.
"""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from coe.cli import (
    ask,
    benchmark,
    check,
    index,
    key,
    log,
    plan,
    promote,
    retrain,
    score,
    solve,
    status,
    train,
    up,
)
from coe.errors import CoEError
from coe.terminal import PrintableFormatter, printable, say_error


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


app = typer.Typer(
    cls=PrintableGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("check")(check.check)
app.command("key")(key.key)
app.command("up")(up.up)
app.command("serve")(up.serve)
app.command("chat")(ask.chat)
app.command("route")(ask.route)
app.command("train")(train.train)
app.command("score")(score.score)
app.command("plan")(plan.plan)
app.command("solve")(solve.solve_lines)
app.command("benchmark")(benchmark.benchmark)
app.add_typer(log.app, name="log")
app.add_typer(index.app, name="index")
app.command("retrain")(retrain.retrain)
app.command("promote")(promote.promote)
app.command("rollback")(promote.rollback)
app.command("versions")(promote.versions)
app.command("status")(status.status)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What is said of a disk that takes no more, without the name of a file."""


def main() -> None:
    """Entry point. Our own errors, and those of files and disks, become their message, without a trace."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in ("coe", "gateway", "routers"):  # libraries speak up only when something is wrong
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # warns of operators that nobody here uses
    try:
        app()
    except CoEError as error:
        say_error(str(error))
        sys.exit(1)
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise
        say_error(f"{f'{error.filename}: ' if error.filename else ''}{error.strerror}")
        sys.exit(1)
