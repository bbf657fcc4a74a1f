"""Declared options as the words of a command line.

Finds the command that runs a server.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from coe.errors import FleetError
from coe.fleet.specs import Flag

RESERVED = frozenset({"host", "port", "served-model-name", "model", "lora-modules"})
"""Flags that follow from the rest of the declaration."""


def named(options: Mapping[str, Flag]) -> dict[str, Flag]:
    """The options under the names the command line has for them."""
    return {name.replace("_", "-").removeprefix("--"): value for name, value in options.items()}


def words(options: Mapping[str, Flag]) -> tuple[str, ...]:
    """Flags in the order given; a boolean one is set or negated."""
    return tuple(word for name, value in options.items() for word in _words(name, value))


def _words(name: str, value: Flag) -> Iterator[str]:
    if isinstance(value, bool):
        yield f"--{name}" if value else f"--no-{name}"
    else:
        yield f"--{name}"
        yield str(value)


def find_command(name: str, *, expert: str, bin_folder: Path, extra: str) -> Path:
    """Beside our own interpreter, or on PATH. Raises FleetError that says how to install it."""
    beside = bin_folder / name
    found = beside if beside.is_file() else shutil.which(name)
    if found is None:
        raise FleetError(
            f"expert {expert!r}: the command {name!r} is neither in {bin_folder} nor on PATH; "
            f"install it with `pip install '{extra}'`, or declare the expert as external"
        )
    return Path(found)
