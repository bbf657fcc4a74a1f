"""`.ci/run` with stand-ins for make and the scripts: a failure ends the run and all that it started."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "run"
STAYS = 'echo $$ >> "$RUNNING"; sleep 300 & wait'
"""A job with a child: both must end."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for folder in (".ci", "scripts", "bin"):
        (tmp_path / folder).mkdir()
    shutil.copy(SCRIPT, tmp_path / ".ci" / "run")
    return tmp_path


def write(script: Path, text: str) -> None:
    script.write_text(f"#!/usr/bin/env bash\n{text}\n")
    script.chmod(0o755)


def run(checkout: Path) -> subprocess.CompletedProcess[str]:
    """Wait until no process holds the output pipes, as a CI service does."""
    environ = os.environ | {"PATH": f"{checkout / 'bin'}:{os.environ['PATH']}", "RUNNING": str(checkout / "running")}
    return subprocess.run(
        [checkout / ".ci" / "run"], env=environ, capture_output=True, text=True, check=False, timeout=60
    )


def group_of(process: psutil.Process) -> int | None:
    """The process group; None for a process that has ended, also before its parent has waited for it."""
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getpgid(process.pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None


def test_a_failed_check_ends_the_background_jobs_and_their_children(checkout: Path) -> None:
    write(checkout / "bin" / "make", f'[ "$1" = setup ] || {{ {STAYS}; }}')
    for name in ("test-vllm", "test-clients"):
        write(checkout / "scripts" / name, STAYS)
    started = 'until [ "$(wc -l < "$RUNNING")" = 4 ]; do sleep 0.01; done'
    write(checkout / "scripts" / "check", f"{started}; echo wrong; exit 3")
    (checkout / "running").touch()
    done = run(checkout)
    assert (done.returncode, done.stdout) == (3, "wrong\n")
    groups = set(map(int, (checkout / "running").read_text().split()))
    deadline = time.monotonic() + 30
    while left := [one for one in psutil.process_iter() if group_of(one) in groups]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_a_failure_of_the_docs_prints_their_output(checkout: Path) -> None:
    write(checkout / "bin" / "make", '[ "$1" != docs ] || { echo "a broken link"; exit 2; }')
    for name in ("test-vllm", "test-clients", "check"):
        write(checkout / "scripts" / name, ":")
    done = run(checkout)
    assert done.returncode == 1
    assert "a broken link" in done.stderr


def test_a_failed_test_ends_the_run(checkout: Path) -> None:
    write(checkout / "bin" / "make", '[ "$1" != test ] || { echo "1 failed"; exit 2; }')
    for name in ("test-vllm", "test-clients"):
        write(checkout / "scripts" / name, '[ "$1" = --collect-only ] || echo wrong')
    write(checkout / "scripts" / "check", ":")
    done = run(checkout)
    assert (done.returncode, done.stdout) == (2, "1 failed\n")


def test_the_exit_status_of_a_run_without_failures_is_0(checkout: Path) -> None:
    for name in ("check", "test-vllm"):
        write(checkout / "scripts" / name, ":")
    write(checkout / "bin" / "make", ":")
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    train = 'if [ "$1" = scripts/end_to_end.py ]; then mkdir -p "$2/router" && echo 7 > "$2/router/current"; fi'
    write(python, train)
    write(checkout / "scripts" / "test-clients", '[ "$1" = --collect-only ] || ls "$CLIENTS_ARTIFACTS/router"')
    write(checkout / "scripts" / "wheel", 'echo "wheel of $(basename "$1")"')
    done = run(checkout)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "current\nwheel of 7\n", "the router that the first start trained"
