"""Shared parts of endpoints that parse experts.yaml: one call at a time in a thread, and problems as JSON."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from coe.errors import Overloaded

T = TypeVar("T")

MAX_WAITING = 8
RETRY_AFTER = 1.0
_PROBLEM = re.compile(r"(?s)([^\n]*?):(\d+): (.*)")


class Serial:
    """Runs one piece of work at a time, each in a thread that ends even if its caller is cancelled. Raises Overloaded
    if too many wait."""

    def __init__(self) -> None:
        self._running = asyncio.Lock()
        self._waiting = 0

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        if self._waiting >= MAX_WAITING:
            raise Overloaded("too many checks of experts.yaml are waiting; try again", retry_after=RETRY_AFTER)
        self._waiting += 1
        try:
            await self._running.acquire()
        except BaseException:
            self._waiting -= 1
            raise
        thread = asyncio.get_running_loop().run_in_executor(None, work, *arguments)
        thread.add_done_callback(self._end)
        return await asyncio.shield(thread)

    def _end(self, thread: asyncio.Future[Any]) -> None:
        self._waiting -= 1
        self._running.release()
        if not thread.cancelled():
            thread.exception()  # marks it as retrieved, so that asyncio logs no warning


def parsed_problems(found: Sequence[str]) -> list[dict[str, Any]]:
    """The parts of each `file:line: message`; `where` is the file, or `entry` for an entry in the request."""
    matches = [(_PROBLEM.fullmatch(problem), problem) for problem in found]
    return [
        {"where": match[1], "line": int(match[2]), "message": match[3]}
        if match
        else {"where": "", "line": None, "message": problem}
        for match, problem in matches
    ]
