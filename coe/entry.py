"""Entry point of the command `coe`: checks that no other distribution replaces its packages, then runs `coe.cli`.

Another distribution with a package `coe`, `gateway` or `routers` (PyPI has a `coe`) can hide ours or overwrite its
`__init__.py`, and pip reports no error (docs/internals/decisions/0017-distribution-name.md).
"""

from __future__ import annotations

import base64
import hashlib
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from coe.errors import DISTRIBUTION

PACKAGES = ("coe", "gateway", "routers")


def main() -> None:
    """Run `coe`, or exit with code 1 and the reason if another distribution replaces a package."""
    if problem := foreign_package(Path(__file__).parent.parent):
        sys.exit(f"coe: {problem}")
    from coe.cli import main as run

    run()


def foreign_package(root: Path) -> str | None:
    """Return a message with the remedy if one of PACKAGES is not from `root` or was overwritten; None otherwise."""
    digests = _recorded_digests()
    for name in PACKAGES:
        first = root / name / "__init__.py"
        spec = find_spec(name) if first.is_file() else None
        if spec is not None and spec.origin not in (None, str(first)):
            return (
                f"the package {name!r} is imported from {spec.origin}, which is not part of {DISTRIBUTION}; "
                "use a separate virtual environment, and no PYTHONPATH with such a folder"
            )
        if not first.is_file() or digests.get(f"{name}/__init__.py", "") not in ("", _digest(first)):
            return (
                f"{first} was overwritten or removed by another distribution with a package {name!r}; "
                f"uninstall that one, then run `pip install --force-reinstall --no-deps {DISTRIBUTION}`"
            )
    return None


def _recorded_digests() -> dict[str, str]:
    """Return the digests in RECORD by file. An editable installation has none of the packages there."""
    try:
        record = distribution(DISTRIBUTION).read_text("RECORD") or ""
    except PackageNotFoundError:
        return {}
    return dict(line.split(",")[:2] for line in record.splitlines() if line.startswith(PACKAGES))


def _digest(file: Path) -> str:
    """Return the digest of a file as a RECORD writes it."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).rstrip(b"=").decode()
