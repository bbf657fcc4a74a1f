"""Options, checks and output settings that the verbs share."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from coe.jobs.engine import Engine
from coe.settings import Settings

Config = Annotated[
    Path | None, typer.Option("--config", help="The configuration [default: COE_CONFIG or experts.yaml].")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
EngineOption = Annotated[
    Engine, typer.Option("--engine", help="Where embedding and fits run: in this process, or on a Ray cluster.")
]
IMAGE_SUFFIXES = (".png", ".svg", ".pdf")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def settings_for(config: Path | None) -> Settings:
    """The process's settings, with the configuration given on the command line."""
    return Settings.read(config=config)


def writable_file(path: Path | None) -> Path | None:
    """Check before the work that an output file can be written after it. Raises BadParameter."""
    if path is None:
        return None
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; name a file in it")
    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent} for it; make it first")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise typer.BadParameter(f"{path} may not be written")
    return path


def image_file(path: Path | None) -> Path | None:
    """Check an output file that is an image. Raises BadParameter."""
    if path is not None and path.suffix not in IMAGE_SUFFIXES:
        raise typer.BadParameter(f"{path} must end in {', '.join(IMAGE_SUFFIXES)}")
    return writable_file(path)


def keep_stdout_clean() -> None:
    """Redirect what C libraries print on standard output to standard error: HiGHS may print amid a plan's JSON."""
    encoding, errors = sys.stdout.encoding, sys.stdout.errors
    if sys.stdout is not sys.__stdout__:
        return  # a test or an embedding process has replaced it
    stdout = os.dup(1)
    os.dup2(2, 1)
    buffering = 1 if os.isatty(stdout) else -1
    sys.stdout = open(  # noqa: SIM115  # until the process ends
        stdout, "w", buffering, encoding=encoding, errors=errors, closefd=False
    )


def duration_seconds(text: str, *, option: str) -> int:
    """A duration such as 30s, 15m, 2h or 7d in seconds. Raises BadParameter, which names the option."""
    match = re.fullmatch(r"([1-9]\d{0,5})([smhd])", text)
    if match is None:
        raise typer.BadParameter("write a number and s, m, h or d, such as 15m", param_hint=option)
    return int(match[1]) * _UNIT_SECONDS[match[2]]
