"""Runs commands of `coe` in processes of their own, because a serving process must not import what they need."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self

import orjson

from coe.errors import JobUnavailable, NotInstalled
from coe.settings import Settings

RETRY_AFTER_SECONDS = 5.0
MAX_WAITING = 8
"""Requests for a job, including the running one."""
MAX_ERROR_CHARACTERS = 500
"""Characters of a failed job's error output that are passed on."""


class Jobs:
    """Runs one job at a time, each with its own time limit. Leaving the context kills the running one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()

    async def run(self, *arguments: str, seconds: float, needs: tuple[str, ...]) -> Any:
        """The JSON that `coe ARGUMENTS --json` prints.

        `needs` are packages that it requires. Raises NotInstalled, or JobUnavailable if it fails, takes longer than
        `seconds`, or too many requests wait.
        """
        check_installed(arguments[0], needs)
        if self._waiting >= MAX_WAITING:
            raise JobUnavailable(f"{MAX_WAITING} requests wait for a job already", retry_after=RETRY_AFTER_SECONDS)
        self._waiting += 1
        try:
            async with self._lock:
                return await asyncio.to_thread(self._run_blocking, arguments, seconds)
        finally:
            self._waiting -= 1

    def _run_blocking(self, arguments: tuple[str, ...], seconds: float) -> Any:
        verb = f"coe {arguments[0]}"
        with start_command(self._settings, *arguments, "--json", stdin=subprocess.DEVNULL) as process:
            self._process = process
            try:
                output, errors = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                message = f"`{verb}` took more than {seconds:g} s and was ended; run it by hand"
                raise JobUnavailable(message, retry_after=RETRY_AFTER_SECONDS) from None
            finally:
                process.kill()
                self._process = None
        try:
            if process.returncode == 0:
                return orjson.loads(output)
        except orjson.JSONDecodeError:
            errors = b"it printed no JSON"
        raise JobUnavailable(f"`{verb}` failed: {error_tail(errors)}", retry_after=RETRY_AFTER_SECONDS)


def check_installed(verb: str, needs: tuple[str, ...]) -> None:
    """Raises NotInstalled, with the remedy, if a package is missing."""
    if missing := [name for name in needs if find_spec(name) is None]:
        raise NotInstalled(
            f"`coe {verb}` needs {', '.join(missing)}, which is not installed where this gateway runs; "
            "pip install 'coe[train]' there, or run it elsewhere"
        )


def start_command(settings: Settings, *arguments: str, stdin: int) -> subprocess.Popen[bytes]:
    """Starts `coe ARGUMENTS` with the gateway's declaration and state, at low priority. Call it in a thread, as a fork
    takes time."""
    nice = ("nice", "-n", "10") if shutil.which("nice") else ()
    return subprocess.Popen(  # noqa: S603  commands and existing versions only
        [*nice, sys.executable, "-m", "coe.cli", *arguments, "--config", str(settings.config)],
        env={**os.environ, "COE_HOME": str(settings.home)},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def error_tail(errors: bytes) -> str:
    """The end of a process's error output."""
    lines = errors.decode(errors="replace").strip().splitlines()
    return " ".join(lines[-3:])[-MAX_ERROR_CHARACTERS:] or "it printed no error"
