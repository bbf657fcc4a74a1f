"""Runs commands of `coe` in separate processes, because a serving process must not import what they need."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import orjson

from coe.artifacts.redis import read_traffic_report
from coe.errors import JobUnavailable, NotInstalled, pip_install
from coe.settings import Settings

REPORT_INTERVAL_SECONDS, CHECK_SECONDS = 6 * 3600.0, 900.0
"""Age of the last traffic report at which the gateway makes one, and the time between two checks of the age."""
REPORT_SECONDS = 600.0
RETRY_AFTER_SECONDS = 5.0
MAX_WAITING = 8
"""Requests for a job at once, including those that run."""
MAX_ERROR_CHARACTERS = 500
"""Characters of a failed job's error output that are passed on."""


_log = logging.getLogger("gateway")


class Jobs:
    """Runs jobs, each with its own time limit; a third one waits. Leaving the context kills those that run."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._places = asyncio.Semaphore(2)
        self._waiting = 0
        self._processes: set[asyncio.subprocess.Process] = set()
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_closed = True
        for process in self._processes:
            if process.returncode is None:
                process.kill()

    async def run(self, *arguments: str, seconds: float, needs: tuple[str, ...]) -> Any:
        """The JSON that `coe ARGUMENTS` prints.

        `needs` are packages that it requires. Raises NotInstalled, or JobUnavailable if it fails, takes longer than
        `seconds`, or too many requests wait.
        """
        verb = f"`coe {arguments[0]}`"
        if missing := [name for name in needs if find_spec(name) is None]:
            raise NotInstalled(
                f"{verb} needs {', '.join(missing)}, which is not installed where this gateway runs; "
                f"{pip_install('plan')} there, or run it elsewhere"
            )
        if self._waiting >= MAX_WAITING:
            raise JobUnavailable(f"{MAX_WAITING} requests wait for a job already", retry_after=RETRY_AFTER_SECONDS)
        self._waiting += 1
        try:
            async with self._places:
                return orjson.loads(await self._output(arguments, seconds))
        except TimeoutError:
            cause = f"{verb} took more than {seconds:g} s and was stopped; run it on the command line"
        except ChildProcessError as error:
            cause = f"{verb} failed: {error}"
        except orjson.JSONDecodeError:
            cause = f"{verb} failed: it printed no JSON"
        finally:
            self._waiting -= 1
        raise JobUnavailable(cause, retry_after=RETRY_AFTER_SECONDS)

    async def _output(self, arguments: tuple[str, ...], seconds: float) -> bytes:
        """Return the output of the command, with the gateway's declaration and state, at low priority. Raises
        TimeoutError, or ChildProcessError with the end of its error output."""
        pipe, null, config = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL, str(self._settings.config)
        command = (sys.executable, "-P", "-m", "coe.cli", *arguments, "--config", config)
        environ = {**os.environ, "COE_HOME": str(self._settings.home)}
        process = await asyncio.create_subprocess_exec(*command, env=environ, stdin=null, stdout=pipe, stderr=pipe)
        self._processes.add(process)
        try:
            with suppress(ProcessLookupError):  # it may have ended already
                os.setpriority(os.PRIO_PROCESS, process.pid, 10)
            if self._is_closed:  # while the process started
                process.kill()
            async with asyncio.timeout(seconds):
                output, errors = await process.communicate()
        finally:  # also if the client leaves
            self._processes.discard(process)
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            lines = errors.decode(errors="replace").strip().splitlines()
            raise ChildProcessError(" ".join(lines[-3:])[-MAX_ERROR_CHARACTERS:] or "it printed no error")
        return output


async def watch_experts(jobs: Jobs, report_file: Path) -> None:
    """Make a traffic report, which acts on alarms, whenever the last one is old: that of `coe retrain --every` counts
    too. The reason of a failure is logged once. It ends where the packages for reports are not installed."""
    logged = ""
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        last = read_traffic_report(report_file)
        if last is not None and time.time() - last.time < REPORT_INTERVAL_SECONDS:
            continue
        try:
            await jobs.run("report", "--publish", "--json", seconds=REPORT_SECONDS, needs=("pyarrow", "scipy"))
            logged = ""
        except NotInstalled as error:
            _log.info("experts that get worse are found by `coe retrain --every` alone: %s", error)
            return
        except JobUnavailable as error:
            if str(error) != logged:
                _log.warning("no traffic report: %s", error)
            logged = str(error)
