"""Turns declared options into command line arguments, and finds the command that runs a server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

from coe.errors import FleetError
from coe.fleet.specs import Flag

RESERVED_FLAGS = frozenset({"host", "port", "served-model-name", "model", "lora-modules"})
"""Flags that CoE sets from the rest of the declaration."""
_PARALLEL_FLAGS = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")


def normalized(options: Mapping[str, Flag]) -> dict[str, Flag]:
    """The options with their names as on the command line."""
    return {name.replace("_", "-").removeprefix("--"): value for name, value in options.items()}


def to_argv(options: Mapping[str, Flag]) -> tuple[str, ...]:
    """The options as arguments, in the given order; a boolean is set or negated."""
    return tuple(word for name, value in options.items() for word in _flag_argv(name, value))


def _flag_argv(name: str, value: Flag) -> Iterator[str]:
    if isinstance(value, bool):
        yield f"--{name}" if value else f"--no-{name}"
    else:
        yield f"--{name}"
        yield str(value)


def parallel_size(options: Mapping[str, Flag]) -> int:
    """The number of devices that the options spread a model over; 1 by default."""
    return prod(size for name in _PARALLEL_FLAGS if isinstance(size := options.get(name), int))


def find_command(name: str, *, expert: str, bin_folder: Path, extra: str) -> Path:
    """Finds a command beside the Python interpreter or on PATH. Raises FleetError with the install command."""
    base_folder = bin_folder / name
    found = base_folder if base_folder.is_file() else shutil.which(name)
    if found is None:
        raise FleetError(
            f"expert {expert!r}: the command {name!r} is neither in {bin_folder} nor on PATH; "
            f"install it with `pip install '{extra}'`, or declare the expert as external"
        )
    return Path(found)
