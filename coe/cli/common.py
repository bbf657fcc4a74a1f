"""What the verbs share: their common options, and how they print.

Spans of time as people write them: 30s, 15m, 2h, 7d.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from coe.jobs.engine import Engine
from coe.settings import Settings

Config = Annotated[Path | None, typer.Option("--config", help="The declaration [default: COE_CONFIG or experts.yaml].")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
EngineOption = Annotated[Engine, typer.Option("--engine", help="Where embedding and fits run: ray is a cluster's.")]
IMAGES = (".png", ".svg", ".pdf")


def settings_for(config: Path | None) -> Settings:
    """The process's settings, with the declaration given on the command line."""
    return Settings.read(config=config)


def writable(path: Path | None) -> Path | None:
    """A file to be written when the work is done: that it can be is found out before. Raises BadParameter."""
    if path is None:
        return None
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; name a file in it")
    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent} for it; make it first")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise typer.BadParameter(f"{path} may not be written")
    return path


def image(path: Path | None) -> Path | None:
    """The same of an image. Raises BadParameter."""
    if path is not None and path.suffix not in IMAGES:
        raise typer.BadParameter(f"{path} is to end in {', '.join(IMAGES)}")
    return writable(path)


def keep_output_clean() -> None:
    """From now on what libraries in C print on standard output goes to standard error: at times HiGHS does, in the
    middle of a plan's JSON."""
    encoding, errors = sys.stdout.encoding, sys.stdout.errors
    if sys.stdout is not sys.__stdout__:
        return  # this process is not the command's own
    kept = os.dup(1)
    os.dup2(2, 1)
    buffering = 1 if os.isatty(kept) else -1
    sys.stdout = open(  # noqa: SIM115  # until the process ends
        kept, "w", buffering, encoding=encoding, errors=errors, closefd=False
    )


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str, *, option: str) -> int:
    """The span in seconds. Bad usage of `option` where it is none."""
    match = re.fullmatch(r"([1-9]\d{0,5})([smhd])", text)
    if match is None:
        raise typer.BadParameter("write a number and s, m, h or d, such as 15m", param_hint=option)
    return int(match[1]) * _UNITS[match[2]]
