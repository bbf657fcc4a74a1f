"""`scripts/setup` and `scripts/uv-install`, and the digests that pinned versions are checked against."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV_INSTALL = ROOT / "scripts" / "uv-install"


def write(script: Path, text: str) -> None:
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)


def wheel(folder: Path, name: str, *, requires: Iterable[str] = ()) -> str:
    """Write an empty package. Returns the digest of its wheel."""
    file = folder / f"{name}-1-py3-none-any.whl"
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1", *(f"Requires-Dist: {one}" for one in requires)]
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}-1.dist-info/METADATA", "\n".join(metadata))
        archive.writestr(f"{name}-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{name}-1.dist-info/RECORD", "")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_changed_file_of_a_pinned_version_is_not_installed_beside_versions_without_digests(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    write(tmp_path / "venv" / "bin" / "pip", "")  # without settings of this machine
    shutil.copy(Path(sys.executable).with_name("uv"), tmp_path / "venv" / "bin" / "uv")
    pinned = wheel(tmp_path, "pinned")
    wheel(tmp_path, "ranged")
    wheel(tmp_path, "asked", requires=("pinned", "ranged"))
    constraints = tmp_path / "constraints.txt"
    install = [UV_INSTALL, tmp_path / "venv", "--no-index", "--no-cache", "--find-links", tmp_path]
    for digest, status in (("0" * 64, 1), (pinned, 0)):
        constraints.write_text(f"ranged<2\npinned==1 --hash=sha256:{digest}\n")
        done = subprocess.run([*install, "--constraint", constraints, "asked"], capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert ("Hash mismatch for `pinned==1`" in done.stderr) == bool(status)


@pytest.mark.parametrize("name", ["", "tests/clients/matrix/", "tests/vllm/"])
def test_every_pinned_version_but_those_of_torch_has_digests(name: str) -> None:
    lines = (ROOT / f"{name}constraints.txt").read_text().splitlines()
    pins = [(line, after) for line, after in pairwise([*lines, ""]) if re.match(r"[A-Za-z]", line)]
    assert len(pins) > 50
    for line, after in pins:
        is_checked = bool(re.fullmatch(r"\S+==\S+ \\", line) and re.match(r"    --hash=sha256:[0-9a-f]{64}", after))
        assert is_checked != line.startswith(("torch>", "torch=", "torchvision=")), line
