"""Orphans of a killed fleet are found at the next start by the fleet variable."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from coe.fleet import supervisor
from coe.fleet.fleet import Fleet
from coe.fleet.process import FLEET_VARIABLE, end_orphans, fleet_environment
from tests.fleet.fake_fleet import QUICK, Fakes

SLEEP = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)")


def started(marked: dict[str, str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(SLEEP, env=os.environ | marked, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    return process


def test_processes_of_a_dead_fleet_are_ended_and_others_stay(tmp_path: Path) -> None:
    gone = {FLEET_VARIABLE: f"{2**22 - 1}:1.00:{tmp_path}"}
    elsewhere = {FLEET_VARIABLE: f"{2**22 - 1}:1.00:{tmp_path / 'other'}"}
    left, other, ours = started(gone), started(elsewhere), started(fleet_environment(tmp_path))
    try:
        (name,) = end_orphans(tmp_path)
        assert f"({left.pid})" in name
        assert left.poll() is not None
        assert (other.poll(), ours.poll()) == (None, None)
        assert end_orphans(tmp_path) == []
    finally:
        for process in (left, other, ours):
            process.kill()
            process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the start of a process is known by the clock only")
def test_processes_of_a_running_fleet_stay_also_after_the_clock_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = started(fleet_environment(tmp_path))
    try:
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: 0.0)
        assert end_orphans(tmp_path) == []
        assert ours.poll() is None
    finally:
        ours.kill()
        ours.wait()


@pytest.mark.anyio
async def test_every_process_of_a_server_carries_the_fleet_variable(fakes: Fakes) -> None:
    spec = fakes.spec("family")
    async with Fleet([spec], report=fakes.report, timeouts=QUICK):
        marks = {psutil.Process(pid).environ()[FLEET_VARIABLE] for pid in fakes.alive()}
        assert marks == set(fleet_environment(spec.log.parent).values())
        assert await asyncio.to_thread(end_orphans, spec.log.parent) == []
        assert len(fakes.alive()) > 1


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG exists on Linux only")
@pytest.mark.parametrize("attempt", range(5))
def test_a_supervisor_killed_right_after_its_fork_leaves_no_server(tmp_path: Path, attempt: int) -> None:
    """The server's process is killed also if it has not yet requested the signal for its parent's death."""
    mark = {"ORPHAN_TEST": f"{tmp_path}:{attempt}"}
    command = [sys.executable, "-P", supervisor.__file__, str(os.getpid()), "1", *SLEEP]
    process = subprocess.Popen(command, env=os.environ | mark, stdout=subprocess.DEVNULL)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (pids := children.read_text().split()):  # without a pause: its first instructions take milliseconds
        assert process.poll() is None
    server = psutil.Process(int(pids[0]))
    process.kill()
    process.wait()
    try:
        server.wait(20)
    finally:
        with suppress(psutil.Error):
            server.kill()
