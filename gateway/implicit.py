"""Implicit signals: an answer asked for again, a stream left in the middle; noticed and written after the answer.

Weak evidence, recorded as what it is: a second try or a closed window may have any reason, and learning weighs it so
(`coe/learning/feedback.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from coe.errors import LogError
from coe.feedback import Feedback, FeedbackLog, Kind
from coe.records.backoff import Backoff
from coe.supervision import TaskFailed, ignored, supervised
from gateway.trace import Trace

AGAIN = 300.0
"""Seconds after an answer within which the same conversation is a second try."""
SOONEST = 1.0
"""Seconds after an answer before which it is not: nobody has read it by then, it is a program."""
TIMES = 3
"""Second tries of one conversation that are told; who asks still more often is a program."""
SHORTEST = 40
"""Characters of a conversation below which it is taken for the same only within a session: many say "hello"."""
REMEMBERED = 10_000
"""Conversations, the latest; some 300 bytes each."""
CAPACITY, BATCH = 10_000, 500
"""Signals that wait to be written, and that are written at a time; beyond it the oldest gives way."""
INTERVAL, PATIENCE = 0.2, 5.0
"""Seconds between two looks at what waits, and that the log has to take it."""

_log = logging.getLogger("gateway")


@dataclass(frozen=True, slots=True)
class _Answered:
    """The last answer to a conversation: by which request, when (Unix seconds), and after how many tries."""

    request_id: str
    time: float
    tries: int


class Notices:
    """What is to be seen in finished requests; in this process's memory, so of several workers each sees its own."""

    def __init__(self) -> None:
        self._answers: OrderedDict[bytes, _Answered] = OrderedDict()

    def of(self, trace: Trace, *, now: float) -> tuple[Feedback, ...]:
        """The signals of a request that ended `now` (Unix seconds)."""
        found = []
        if trace.left and trace.reply is not None and trace.chat is not None and trace.chat.stream:
            found.append(_signal("abandoned", trace.request_id, trace, now=now))
        if (conversation := _conversation(trace)) is not None:
            before = self._answers.get(conversation)
            again = before is not None and SOONEST <= trace.time - before.time <= AGAIN
            tries = before.tries + 1 if again and before is not None else 0
            if again and before is not None and tries <= TIMES:
                found.append(_signal("regenerated", before.request_id, trace, now=now))
            self._remember(conversation, _Answered(trace.request_id, now, tries))
        return tuple(found)

    def _remember(self, conversation: bytes, answered: _Answered) -> None:
        self._answers[conversation] = answered
        self._answers.move_to_end(conversation)
        if len(self._answers) > REMEMBERED:
            self._answers.popitem(last=False)


def _conversation(trace: Trace) -> bytes | None:
    """What an answered conversation is known by, whoever's it is; None for what is none, or was not answered."""
    chat, session = trace.chat, trace.wishes.session if trace.wishes else None
    if chat is None or not chat.messages or chat.api == "embeddings":
        return None
    if trace.outcome != "ok" and not (trace.left and trace.reply is not None):
        return None
    if session is None and chat.characters < SHORTEST:
        return None
    shape = f"{trace.caller.tenant}\0{session}\0{chat.api}\0{len(chat.messages)}\0{chat.characters}\0{trace.text}"
    return hashlib.blake2b(shape.encode("utf-8", "replace"), digest_size=16).digest()


def _signal(kind: Kind, request_id: str, trace: Trace, *, now: float) -> Feedback:
    caller = trace.caller
    return Feedback(f"{kind}:{trace.request_id}", request_id, now, kind, tenant=caller.tenant, key=caller.key)


class ImplicitSignals:
    """An observer that never waits and never raises; a task writes what it noticed, while the block is entered."""

    def __init__(self, log: FeedbackLog, *, count: Callable[[Kind], None], task_failed: TaskFailed = ignored) -> None:
        self._task_failed = task_failed
        self.dropped = 0
        """Signals lost since the start."""
        self._notices = Notices()
        self._log, self._count = log, count
        self._queue: deque[Feedback] = deque(maxlen=CAPACITY)
        self._backoff = Backoff(first=0.5, longest=30.0)
        self._closing = asyncio.Event()

    def observe(self, trace: Trace) -> None:
        """Notice a finished request."""
        for event in self._notices.of(trace, now=time.time()):
            self.dropped += len(self._queue) == CAPACITY
            self._queue.append(event)

    async def __aenter__(self) -> Self:
        self._task = supervised(self._run, "implicit-feedback", task_failed=self._task_failed, may_return=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what waits, within PATIENCE."""
        self._closing.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._task

    async def _run(self) -> None:
        while not self._closing.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL):
                    await self._closing.wait()
            if not self._backoff.resting:
                await self._write()
        await self._write()

    async def _write(self) -> None:
        while self._queue:
            batch = [self._queue[index] for index in range(min(BATCH, len(self._queue)))]
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._log.append(batch)
            except (LogError, TimeoutError) as error:
                self._backoff.failed()
                _log.warning("%d implicit signals wait: %s", len(self._queue), str(error) or "the log does not answer")
                return
            self._backoff.reset()
            for event in batch:
                self._count(event.kind)
                if self._queue and self._queue[0] is event:  # else it had given way meanwhile
                    self._queue.popleft()
