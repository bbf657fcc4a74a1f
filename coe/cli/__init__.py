"""The `coe` command: one module for each verb or group of verbs, which parses, calls a job and prints.

Exits with 0, with 1 when something failed, and with 2 for bad usage. All output is made printable, since file names and
answers may hold control characters.
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
    log,
    plan,
    probes,
    promote,
    retrain,
    score,
    status,
    train,
    up,
)
from coe.errors import CoEError
from coe.terminal import PrintableFormatter, print_error, printable


class PrintableGroup(TyperGroup):
    """A group of commands whose usage errors are printable; they repeat words of the command line."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        with _printable_errors():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        with _printable_errors():
            return super().invoke(ctx)


_UsageError: Any = typer.BadParameter.__base__
"""The base of usage errors in the copy of click that Typer ships, which Typer does not export."""


@contextmanager
def _printable_errors() -> Iterator[None]:
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
app.command("key")(check.key)
app.command("up")(up.up)
app.command("serve")(up.serve)
app.command("chat")(ask.chat)
app.command("route")(ask.route)
app.command("train")(train.train)
app.command("score")(score.score)
app.add_typer(probes.app, name="probes")
app.command("plan")(plan.plan)
app.command("solve")(plan.solve_lines)
app.command("benchmark")(benchmark.benchmark)
app.add_typer(log.app, name="log")
app.add_typer(index.app, name="index")
app.command("retrain")(retrain.retrain)
app.command("promote")(promote.promote)
app.command("rollback")(promote.rollback)
app.command("versions")(promote.versions)
app.command("status")(status.status)

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of a full or read-only disk, which may come without a file name."""


def main() -> None:
    """Run the command; CoE's errors, and those of files and disks, print their message without a traceback."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in ("coe", "gateway", "routers"):  # libraries log warnings only
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # warns about operators that CoE does not use
    try:
        app()
    except CoEError as error:
        print_error(str(error))
        sys.exit(1)
    except OSError as error:
        if error.filename is None and error.errno not in DISK_ERRORS:
            raise
        print_error(f"{f'{error.filename}: ' if error.filename else ''}{error.strerror}")
        sys.exit(1)
