"""The `coe` command: one module a verb group. Exit 0, 1 when something failed, 2 for bad usage."""

from __future__ import annotations

import errno
import logging
import sys

import typer

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
    versions,
)
from coe.cli.common import say_error
from coe.cli.usage import PrintableGroup
from coe.errors import CoEError
from coe.terminal import PrintableFormatter

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
app.command("versions")(versions.versions)
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
