"""Finds and ends what a killed predecessor left running: every process of a fleet carries its mark in its environment.

A warden ends its server when `coe up` dies, even by SIGKILL; this is for what got away all the same, such as the
workers of a server whose warden was killed too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

MARK = "COE_FLEET"
PATIENCE = 5.0
"""Seconds to end by themselves, before SIGKILL."""


def mark(logs: Path) -> dict[str, str]:
    """What the processes of this process's fleet carry: whose they are, by the folder of their logs."""
    me = psutil.Process()
    return {MARK: f"{me.pid}:{me.create_time():.2f}:{logs.absolute()}"}


def end_leftovers(logs: Path) -> list[str]:
    """End the processes of earlier fleets with the same folder of logs whose own process is gone; their names and ids.
    Those of a fleet that still runs are left alone."""
    found = list(_leftovers(str(logs.absolute())))
    names = [f"{process.info['name']} ({process.pid})" for process in found]
    for process in found:
        _signal(process, kill=False)
    _, stubborn = psutil.wait_procs(found, PATIENCE)
    for process in stubborn:
        _signal(process, kill=True)
    psutil.wait_procs(stubborn, PATIENCE)
    return names


def _leftovers(logs: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter(["name"]):
        try:
            pid, began, whose = process.environ().get(MARK, "::").split(":", 2)
        except (psutil.Error, ValueError):  # it has just ended, or is not ours to read
            continue
        if whose == logs and process.pid != os.getpid() and not _lives(int(pid), began):
            yield process


def _lives(pid: int, began: str) -> bool:
    try:
        process = psutil.Process(pid)
        return f"{process.create_time():.2f}" == began and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        process.kill() if kill else process.terminate()
    except psutil.Error:  # it has just ended
        return
