"""`scripts/layout.py` reports import cycles, crowded folders and long files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "layout.py"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git work tree with the three packages and the script."""
    for package in ("coe", "gateway", "routers"):
        write(tmp_path, f"{package}/__init__.py")
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    subprocess.run(("git", "init", "--quiet", tmp_path), check=True)
    return tmp_path


def write(root: Path, name: str, text: str = "") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def problems(root: Path) -> list[str]:
    script = root / "scripts" / "layout.py"
    ran = subprocess.run((sys.executable, "-P", script), capture_output=True, text=True, cwd=root, check=False)
    assert ran.returncode == (1 if ran.stderr else 0), ran.stderr
    return ran.stderr.splitlines()


def test_a_tree_without_violations_passes(repository: Path) -> None:
    write(repository, "coe/a.py", "import coe.b\n")
    write(repository, "coe/b.py")
    for number in range(18):
        write(repository, f"coe/m{number}.py", "x = 1\n" * 800)
    assert problems(repository) == []


@pytest.mark.parametrize(
    "back",
    [
        "from coe import a\n",
        "def f():\n    import coe.a\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from coe.a import x\n",
    ],
    ids=["at the top", "inside a function", "for types alone"],
)
def test_an_import_cycle_is_reported(repository: Path, back: str) -> None:
    write(repository, "coe/a.py", "import coe.b\nx = 1\n")
    write(repository, "coe/b.py", back)
    (problem,) = problems(repository)
    assert "import cycle: " in problem
    assert "coe.a" in problem
    assert "coe.b" in problem


def test_a_crowded_folder_and_a_long_file_are_reported(repository: Path) -> None:
    for number in range(21):
        write(repository, f"gateway/m{number}.py")
    write(repository, "routers/long.py", "x = 1\n" * 801)
    assert problems(repository) == [
        "check: gateway: 21 modules, at most 20",
        "check: routers/long.py: 801 lines, at most 800",
    ]
