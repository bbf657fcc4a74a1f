"""What the verbs share: their common options, and how they print."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from coe.artifacts.redis import RedisArtifacts, mirror, share_at
from coe.artifacts.store import KINDS, ArtifactStore
from coe.errors import ArtifactError
from coe.registry import load
from coe.settings import Settings
from coe.terminal import printable

Config = Annotated[Path | None, typer.Option("--config", help="The declaration [default: COE_CONFIG or experts.yaml].")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
IMAGES = (".png", ".svg", ".pdf")


def settings_for(config: Path | None) -> Settings:
    """The process's settings, with the declaration given on the command line."""
    return Settings.read(config=config)


def caught_up(settings: Settings) -> RedisArtifacts | None:
    """Where `artifacts` says that what is in use is shared, after what is so elsewhere is so here; None where it is not
    shared. Raises ArtifactError where that cannot be found out, since what is done next would be undone by it."""
    share = share_at(load(settings.config, environ=settings.environ).artifacts)
    if share is not None:
        mirror([ArtifactStore(settings.artifacts, kind, share) for kind in KINDS])
    return share


def store_of(settings: Settings, kind: str) -> ArtifactStore:
    """The artifacts of a kind, caught up with other machines as far as that can be: a version that is damaged there
    must not keep another from being promoted, and where Redis is away nothing can be."""
    try:
        return ArtifactStore(settings.artifacts, kind, caught_up(settings))
    except ArtifactError as error:
        say_error(f"note: {error}")
        share = share_at(load(settings.config, environ=settings.environ).artifacts)
        return ArtifactStore(settings.artifacts, kind, share)


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


def say(text: str) -> None:
    """Prints a line for people, at once even into a pipe."""
    write(f"{text}\n")


def write(text: str) -> None:
    """Prints a part of a line, at once."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def say_error(text: str) -> None:
    """Prints a line beside the output, for people who redirect it."""
    sys.stderr.write(printable(f"{text}\n"))
    sys.stderr.flush()


def say_json(value: Any) -> None:
    """Prints one JSON document or line."""
    try:
        say(orjson.dumps(value).decode())
    except orjson.JSONEncodeError:  # a file name that is not UTF-8
        say(json.dumps(value))
