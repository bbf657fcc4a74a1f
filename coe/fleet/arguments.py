"""Turns declared options into command line arguments, and finds the command that runs a server."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from coe.errors import FleetError
from coe.fleet.engines import environments
from coe.fleet.specs import Flag


def to_argv(options: Mapping[str, Flag]) -> tuple[str, ...]:
    """The options as arguments, in the given order; a boolean is set or negated."""
    return tuple(word for name, value in options.items() for word in _flag_argv(name, value))


def _flag_argv(name: str, value: Flag) -> Iterator[str]:
    if isinstance(value, bool):
        yield f"--{name}" if value else f"--no-{name}"
    else:
        yield f"--{name}"
        yield str(value)


def bin_folders(engines: Path | None, runtime: str, python: Path | None = None) -> tuple[Path, ...]:
    """Return the folders to search for the commands of a runtime: its own environment, then that of `python`, by
    default this interpreter."""
    own = None if engines is None else environments.bin_folder(engines, runtime)
    siblings = Path(python or sys.executable).parent
    return (siblings,) if own is None else (own, siblings)


def locate_command(name: str, folders: Sequence[Path]) -> Path | None:
    """Return the path of a command in one of the folders or on PATH; None if there is none."""
    found = next((folder / name for folder in folders if (folder / name).is_file()), None) or shutil.which(name)
    return None if found is None else Path(found)


def find_command(name: str, *, expert: str, folders: Sequence[Path], install: str) -> Path:
    """Locate the command like `locate_command`. Raises FleetError with the installation command if it is missing."""
    found = locate_command(name, folders)
    if found is None:
        raise FleetError(
            f"expert {expert!r}: the command {name!r} is neither in {' nor in '.join(map(str, folders))} nor on PATH; "
            f"install it with {install}, or declare the expert as external"
        )
    return found
