"""Finds the command that runs a server."""

from __future__ import annotations

import shutil
from pathlib import Path

from coe.errors import FleetError


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
