"""`.ci/run` with stand-ins for make and the scripts: its end, early or not, is the end of all that it started."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
STAYS = 'timeout 300 sleep 300 & setsid -f sleep 300; echo $$ >> "$RUNNING"; wait'
"""A job with processes of other groups and sessions, one of them an orphan."""
PYTHON = f'[ "$1" != -P ] || exec {sys.executable} "$@"'
"""Starts supervisors, and nothing else."""
STARTED = 'until [ "$(wc -l < "$RUNNING")" = {} ]; do sleep 0.01; done'
LIMIT = 60.0


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for folder in (".ci", "scripts", "bin", ".venv/bin", "coe/fleet"):
        (tmp_path / folder).mkdir(parents=True)
    for file in (".ci/run", "coe/fleet/supervisor.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    for name in ("check", "test-vllm", "test-clients", "wheel"):
        write(tmp_path / "scripts" / name, ":")
    write(tmp_path / "bin" / "make", ":")
    write(tmp_path / ".venv" / "bin" / "python", PYTHON)
    (tmp_path / "running").touch()
    return tmp_path


def write(script: Path, text: str) -> None:
    script.write_text(f"#!/usr/bin/env bash\n{text}\n")
    script.chmod(0o755)


def environment(checkout: Path) -> Mapping[str, str]:
    return os.environ | {"PATH": f"{checkout / 'bin'}:{os.environ['PATH']}", "RUNNING": str(checkout / "running")}


def run(checkout: Path) -> subprocess.CompletedProcess[str]:
    """Wait until no process holds the output pipes, as a CI service does."""
    command = [checkout / ".ci" / "run"]
    return subprocess.run(
        command, env=environment(checkout), capture_output=True, text=True, check=False, timeout=LIMIT
    )


def running(checkout: Path) -> list[psutil.Process]:
    """The processes that a run of this checkout started, by their environment."""
    found = []
    for one in psutil.process_iter():
        try:
            if one.environ().get("RUNNING") == str(checkout / "running"):
                found.append(one)
        except psutil.Error:  # it has just ended, or belongs to the system
            continue
    return found


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_failed_check_ends_the_background_jobs_and_all_that_they_started(checkout: Path) -> None:
    write(checkout / "bin" / "make", f'[ "$1" = setup ] || {{ {STAYS}; }}')
    for name in ("test-vllm", "test-clients"):
        write(checkout / "scripts" / name, STAYS)
    write(checkout / "scripts" / "check", f"{STARTED.format(4)}; echo wrong; exit 3")
    done = run(checkout)
    assert (done.returncode, done.stdout) == (3, "wrong\n")
    assert running(checkout) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_the_run_and_all_that_it_started(checkout: Path, number: signal.Signals) -> None:
    write(checkout / "bin" / "make", f'[ "$1" != test ] || {{ {STAYS}; }}')
    with subprocess.Popen([checkout / ".ci" / "run"], env=environment(checkout)) as process:
        try:
            wait_until(lambda: len((checkout / "running").read_text().split()) == 1)
        finally:
            process.send_signal(number)
    wait_until(lambda: running(checkout) == [])


@pytest.mark.parametrize(("target", "failure", "status"), [("docs", "a broken link", 1), ("test", "1 failed", 2)])
def test_a_failure_of_docs_or_tests_ends_the_run_with_their_output(
    checkout: Path, target: str, failure: str, status: int
) -> None:
    write(checkout / "bin" / "make", f'[ "$1" != {target} ] || {{ echo "{failure}"; exit 2; }}')
    write(checkout / "scripts" / "test-clients", '[ "$1" = --collect-only ] || echo wrong')
    done = run(checkout)
    assert (done.returncode, (done.stdout + done.stderr).strip()) == (status, failure)


TRAIN = 'if [ "$1" = scripts/end_to_end.py ]; then mkdir -p "$2/router" && echo 7 > "$2/router/current"; fi'


@pytest.mark.parametrize(("vllm", "status"), [(77, 0), (4, 4)])
def test_the_status_of_a_run_without_other_failures_is_that_of_vllm(checkout: Path, vllm: int, status: int) -> None:
    """77 means that vLLM does not run on this machine."""
    write(checkout / ".venv" / "bin" / "python", f"{PYTHON}\n{TRAIN}")
    write(checkout / "scripts" / "test-vllm", f'[ "$1" = --collect-only ] || {{ echo "vLLM"; exit {vllm}; }}')
    write(checkout / "scripts" / "test-clients", '[ "$1" = --collect-only ] || ls "$CLIENTS_ARTIFACTS/router"')
    write(checkout / "scripts" / "wheel", 'echo "wheel of $(basename "$1")"')
    done = run(checkout)
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout == "current\nwheel of 7\nvLLM\n", "the router that the first start trained"
