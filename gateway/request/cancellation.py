"""What may end a request before its answer does: its client leaving, its time being over, the process ending."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from starlette.types import Receive

from coe.errors import RequestError


class ClientLeftError(Exception):
    """The client closed the connection, or reads no more; nobody waits for the answer."""


class Cancellation:
    """Cancels the block it is entered around and raises in its place the error that says why. `open` holds all cutoffs
    that are entered, so that the end of the process can cut them.

    The block's time is over when the event loop's clock shows `deadline`; the error is then what `late` makes.
    """

    __slots__ = ("_error", "_loop", "_open", "_task", "_timer", "_watcher", "deadline", "late")

    def __init__(self, open: set[Cancellation], *, deadline: float, late: Callable[[], RequestError]) -> None:  # noqa: A002
        self.deadline = deadline
        """May be moved on, not back: the timer looks again when it rings."""
        self.late = late
        self._open = open
        self._error: RequestError | ClientLeftError | None = None
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._loop = task.get_loop()
        self._timer = self._loop.call_at(self.deadline, self._ring)
        self._open.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.over()
        if self._error is not None:
            self._task.uncancel()
            if kind is asyncio.CancelledError:
                raise self._taken() from None

    def watch(self, receive: Receive) -> None:
        """From now on notice when the client leaves. The body must have been read."""
        self._watcher = self._loop.create_task(self._watch(receive))

    def over(self) -> None:
        """The answer is out: nothing can cut it any more, not even the client, who has no reason to stay."""
        self._open.discard(self)
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None  # its error will hold this cutoff: in a circle, all of the request would wait for the
            #                       garbage collector

    def cut(self, error: RequestError | ClientLeftError) -> None:
        """End the block with this error, unless it is being ended already."""
        if self._error is None:
            self._error = error
            self._task.cancel()

    def _taken(self) -> RequestError | ClientLeftError:
        """The error, held no more."""
        taken, self._error = self._error, None
        assert taken is not None
        return taken

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.cut(ClientLeftError())

    def _ring(self) -> None:
        if self._loop.time() < self.deadline:
            self._timer = self._loop.call_at(self.deadline, self._ring)
        else:
            self.cut(self.late())
