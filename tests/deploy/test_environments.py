"""`scripts/setup` and `scripts/uv-install`, and the digests that pinned versions are checked against."""

from __future__ import annotations

import hashlib
import os
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
INSTALLER = """
[ -e "$1/package" ] && exit
echo half > "$1/package"
[ -e interrupted ] || { touch interrupted; exit 1; }
echo whole > "$1/package"
"""
"""Keeps a package that exists, as installers do, and fails in its first run, with half of the package written."""
PIP = r"""
cat <<'END'
:env:.extra-index-url='\nhttps://a.test/simple\nhttps://b.test/simple'
:env:.no-index='1'
global.extra-index-url='https://c.test/simple'
global.find-links='/one\n/two'
END
"""


def write(script: Path, text: str) -> None:
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)


def test_the_environment_is_made_anew_after_an_interruption(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "constraints.txt", "scripts/build_kernel.py", "routers/kernel/module.c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    shutil.copy(ROOT / "scripts" / "setup", tmp_path / "scripts")
    write(
        tmp_path / "python",
        f'[ "$1 $2" != "-m venv" ] || {{ mkdir -p "$3/bin" && ln -sf {tmp_path}/python "$3/bin"; }}',
    )
    write(tmp_path / "scripts" / "uv-install", INSTALLER)
    environ = os.environ | {"PYTHON": str(tmp_path / "python")}
    for package in ("half\n", "whole\n"):
        done = subprocess.run([tmp_path / "scripts" / "setup"], env=environ, capture_output=True, check=False)
        assert (done.returncode == 0) == (package == "whole\n"), done.stderr
        assert (tmp_path / ".venv" / "package").read_text() == package
    (tmp_path / ".venv" / "mine").touch()
    (tmp_path / "pyproject.toml").write_text("changed")
    subprocess.run([tmp_path / "scripts" / "setup"], env=environ, check=True)
    assert (tmp_path / ".venv" / "mine").exists(), "a complete environment is changed, not replaced"


def test_the_settings_of_pip_are_passed_on_to_uv(tmp_path: Path) -> None:
    write(tmp_path / "bin" / "pip", PIP)
    write(tmp_path / "bin" / "uv", 'echo "$UV_INDEX|$UV_FIND_LINKS|$*"')
    environ = {"PATH": os.environ["PATH"]}
    command = [UV_INSTALL, tmp_path, "--no-deps", "some"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    index, links, words = done.stdout.strip().split("|")
    assert (index, links) == ("https://a.test/simple https://b.test/simple", "/one,/two")
    assert words.endswith("--no-index --no-deps some")


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
