"""What the verbs share: their common options, and how they print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from coe.settings import Settings

Config = Annotated[Path | None, typer.Option("--config", help="The declaration [default: COE_CONFIG or experts.yaml].")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def settings_for(config: Path | None) -> Settings:
    """The process's settings, with the declaration given on the command line."""
    return Settings.read(config=config)


def say(text: str) -> None:
    """A line for people, at once even into a pipe."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def say_error(text: str) -> None:
    """A line beside the output, for people who redirect it."""
    sys.stderr.write(f"{text}\n")


def say_json(value: Any) -> None:
    """One JSON document or line."""
    say(orjson.dumps(value).decode())
