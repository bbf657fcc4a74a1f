#!/usr/bin/env python3
"""Fetches what the page at /ui takes from others into gateway/ui/assets/vendor, by the digests in package-lock.json.

Needs no Node: an npm package is a tarball. The registry is the one npm would use (NPM_CONFIG_REGISTRY, or `registry` in
~/.npmrc). Does nothing where everything is there already.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import sys
import tarfile
import urllib.request
from pathlib import Path

UI = Path(__file__).resolve().parent.parent / "gateway" / "ui"
VENDOR = UI / "assets" / "vendor"
DONE = VENDOR / "versions.json"
"""Written last: package and version of what lies beside it."""
REGISTRY = "https://registry.npmjs.org"
TIMEOUT = 30.0


def vendor() -> bool:
    """Fetch what is not there yet; False where all was. Raises OSError or ValueError, with nothing changed."""
    files = json.loads((UI / "package.json").read_text())["coe"]
    locked = json.loads((UI / "package-lock.json").read_text())["packages"]
    wanted = {name: locked[f"node_modules/{name}"] for name in files}
    versions = json.dumps({name: package["version"] for name, package in wanted.items()}, indent=2) + "\n"
    if DONE.exists() and DONE.read_text() == versions:
        return False
    registry = _registry()
    fetched = {
        target: content
        for name, package in wanted.items()
        for target, content in _files(_tarball(registry, name, package), files[name]).items()
    }
    VENDOR.mkdir(exist_ok=True)
    for target, content in fetched.items():
        (VENDOR / target).write_bytes(content)
    DONE.write_text(versions)
    return True


def _registry() -> str:
    for name in ("NPM_CONFIG_REGISTRY", "npm_config_registry"):
        if found := os.environ.get(name):
            return found.rstrip("/")
    try:
        lines = (Path.home() / ".npmrc").read_text().splitlines()
    except OSError:
        return REGISTRY
    declared = [line.partition("=")[2].strip() for line in lines if line.partition("=")[0].strip() == "registry"]
    return (declared or [REGISTRY])[-1].rstrip("/")


def _tarball(registry: str, name: str, package: dict[str, str]) -> bytes:
    """Raises ValueError where what came is not what was locked."""
    address = f"{registry}/{name}/-/{name.rpartition('/')[2]}-{package['version']}.tgz"
    with urllib.request.urlopen(address, timeout=TIMEOUT) as response:
        content: bytes = response.read()
    digest = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    if digest != package["integrity"]:
        raise ValueError(f"{address}: its digest is {digest}, and package-lock.json has {package['integrity']}")
    return content


def _files(tarball: bytes, wanted: dict[str, str]) -> dict[str, bytes]:
    """Archive members to read, by their new names. They are never unpacked to a path that the archive chooses."""
    with tarfile.open(fileobj=io.BytesIO(tarball)) as archive:
        return {target: archive.extractfile(f"package/{source}").read() for source, target in wanted.items()}  # type: ignore[union-attr]


if __name__ == "__main__":
    try:
        if vendor():
            sys.stdout.write(f"vendor: fetched {', '.join(json.loads(DONE.read_text()))}\n")
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"vendor: the page at /ui will not work, its libraries cannot be fetched: {error}")
