"""Runs commands of `coe` in separate processes, because a serving process must not import what they need."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from typing import Any, Self

import orjson

from coe.errors import JobUnavailable, NotInstalled, pip_install
from coe.settings import Settings

RETRY_AFTER_SECONDS = 5.0
MAX_WAITING = 8
"""Requests for a job at once, including the running one."""
MAX_ERROR_CHARACTERS = 500
"""Characters of a failed job's error output that are passed on."""


class Jobs:
    """Runs one job at a time, each with its own time limit. Leaving the context kills the running one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_closed = True
        if self._process is not None:
            self._process.kill()

    async def run(self, *arguments: str, seconds: float, needs: tuple[str, ...]) -> Any:
        """The JSON that `coe ARGUMENTS` prints.

        `needs` are packages that it requires. Raises NotInstalled, or JobUnavailable if it fails, takes longer than
        `seconds`, or too many requests wait.
        """
        verb = f"`coe {arguments[0]}`"
        if missing := [name for name in needs if find_spec(name) is None]:
            raise NotInstalled(
                f"{verb} needs {', '.join(missing)}, which is not installed where this gateway runs; "
                f"{pip_install('train')} there, or run it elsewhere"
            )
        if self._waiting >= MAX_WAITING:
            raise JobUnavailable(f"{MAX_WAITING} requests wait for a job already", retry_after=RETRY_AFTER_SECONDS)
        self._waiting += 1
        try:
            async with self._lock:
                output = await asyncio.to_thread(self._output, arguments, seconds)
        finally:
            self._waiting -= 1
        try:
            return orjson.loads(output)
        except orjson.JSONDecodeError:
            raise JobUnavailable(f"{verb} failed: it printed no JSON", retry_after=RETRY_AFTER_SECONDS) from None

    def _output(self, arguments: tuple[str, ...], seconds: float) -> bytes:
        """Return the output of the command, with the gateway's declaration and state, at low priority. Blocks."""
        verb = f"`coe {arguments[0]}`"
        nice = ("nice", "-n", "10") if shutil.which("nice") else ()
        with subprocess.Popen(  # noqa: S603  commands and existing versions only
            [*nice, sys.executable, "-P", "-m", "coe.cli", *arguments, "--config", str(self._settings.config)],
            env={**os.environ, "COE_HOME": str(self._settings.home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            self._process = process
            if self._is_closed:  # while the process started
                process.kill()
            try:
                output, errors = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                message = f"{verb} took more than {seconds:g} s and was stopped; run it on the command line"
                raise JobUnavailable(message, retry_after=RETRY_AFTER_SECONDS) from None
            finally:
                process.kill()
                self._process = None
        if process.returncode == 0:
            return output
        lines = errors.decode(errors="replace").strip().splitlines()
        why = " ".join(lines[-3:])[-MAX_ERROR_CHARACTERS:] or "it printed no error"
        raise JobUnavailable(f"{verb} failed: {why}", retry_after=RETRY_AFTER_SECONDS)
