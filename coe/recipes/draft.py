"""`Draft`: one call to a member of a recipe, whose answer is buffered until the recipe returns or discards it.

A separate task reads each draft, so that the members of a step answer at the same time. The chunks of a returned draft
go to the client unchanged; if the answer is not complete, the task still reads the rest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from coe import json_text
from coe.core import AnswerMemory, Call, Expert
from coe.errors import ExpertError, InvalidRequest
from coe.experts.held_answer import HeldAnswer
from coe.experts.http import sse
from coe.experts.http.sse import EVENT_STREAM
from coe.recipes.chat_answer import MALFORMED, answer_text
from coe.usage import MemberCall

MAX_HELD_BYTES = 16 * 2**20
"""Bytes of answers that one request may hold."""
MAX_TEXT_BYTES = 2 * 2**20
"""Bytes of an answer that is read for its text; longer ones count as long free text."""
MAX_RELAY_BYTES = 2**20
"""Bytes that are read ahead of a client while an unfinished draft is relayed."""

FinalAnswer = Callable[[str], str | None]
"""Returns the normalized final answer of a text; None if there is none that can be compared."""


class HeldBytes:
    """Bytes that all drafts of one request hold. `changed` is set when they exceed `limit` or a draft begins or
    settles."""

    __slots__ = ("_held", "changed", "count", "limit")

    def __init__(self, limit: int, memory: AnswerMemory | None = None) -> None:
        self.count = 0
        self.limit = limit
        self.changed = asyncio.Event()
        self._held = HeldAnswer(memory)

    def add(self, count: int) -> None:
        """Hold so many more bytes, fewer if the number is negative. Raises AnswerMemoryFull."""
        self._held.resize(self.count + count)
        self.count += count

    @property
    def full(self) -> bool:
        return self.count > self.limit


class Draft:
    """One call to a member and what it has answered so far.

    `began` is the time of the first token (event loop clock), None before it. A `settled` draft is `complete`, has an
    `error`, or was cancelled. `answer` is the final answer of a complete one, None if it cannot be compared.
    """

    def __init__(
        self,
        member: Expert,
        call: Call,
        log: MemberCall,
        *,
        held: HeldBytes,
        final_answer: FinalAnswer,
    ) -> None:
        self.log = log
        self.media_type = ""
        self.began: float | None = None
        self.settled = self.complete = False
        self.error: Exception | None = None
        self.answer: str | None = None
        self._member = member
        self._call: Call | None = call
        self._held = held
        self._final_answer = final_answer
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._relayed = False
        self._news = asyncio.Event()
        """Set for the relay: a chunk arrived or the draft ended."""
        self._room = asyncio.Event()
        """Set for the reader: the relay took a chunk or began."""

    @property
    def usable(self) -> bool:
        """True if it can be returned: it is complete, or a stream that has begun and is still read."""
        streams = self.began is not None and not self.settled and self.media_type == EVENT_STREAM
        return self.complete or streams

    async def read(self) -> None:
        """Call the member and read its answer to the end, once. Never raises: only its recipe cancels it."""
        clock = asyncio.get_running_loop().time
        start = clock()
        try:
            await self._read(clock)
        except (ExpertError, InvalidRequest) as error:
            error.drop_frames()
            self.error = error
            self.log.outcome = error.cause if isinstance(error, ExpertError) else "unsupported"
        except asyncio.CancelledError:
            pass  # the exception of a cancelled task would keep the frames of the call in memory
        except Exception as error:  # a defect, which the recipe raises
            self.error, self.log.outcome = error, "error"
        finally:
            self.log.ms = (clock() - start) * 1000
            self.settled = True
            if not self.complete and not self._relayed:
                self.discard()
            self._news.set()
            self._held.changed.set()

    async def _read(self, clock: Callable[[], float]) -> None:
        call, self._call = self._call, None
        assert call is not None
        reply = await self._member.stream(call)
        del call  # the member has the body, which may be large
        try:
            self.media_type, self.log.usage = reply.media_type, reply.usage
            self.began = clock()
            self._held.changed.set()
            async with aclosing(reply.chunks()) as chunks:
                async for chunk in chunks:
                    self._keep(chunk)
                    if self.media_type == EVENT_STREAM:
                        await self._wait_for_room()
            self._complete()
        finally:
            await reply.aclose()

    def _complete(self) -> None:
        """Mark the answer as complete before its connection is closed, which takes longer."""
        self.complete = self.settled = True
        if not self.log.accepted:
            text = self.text()
            self.answer = None if text is None else self._final_answer(text)
            self.log.outcome = "unreadable" if self.answer is None else "answered"
        elif self.log.outcome == "cancelled":  # relayed from its first byte
            self.log.outcome = "answered"
        self._news.set()
        self._held.changed.set()

    def _keep(self, chunk: bytes) -> None:
        self._held.add(len(chunk))
        self._chunks.append(chunk)
        self._size += len(chunk)
        self._news.set()
        if self._held.full:
            self._held.changed.set()

    async def _wait_for_room(self) -> None:
        """Wait while too many bytes are held: until the draft is relayed, or its client has read enough of them."""
        while self._size > MAX_RELAY_BYTES if self._relayed else self._held.full:
            self._room.clear()
            await self._room.wait()

    def text(self) -> str | None:
        """Return the text of a complete answer that is held; None if it is too long, cut off or refused."""
        if self._size > MAX_TEXT_BYTES:
            return None
        return answer_text(b"".join(self._chunks), stream=self.media_type == EVENT_STREAM)

    def discard(self) -> None:
        """Drop the chunks that are held."""
        self._held.add(-self._size)
        self._size = 0
        self._chunks.clear()

    def to_stream(self, *, with_usage: bool) -> bool:
        """Turn a complete non-streaming answer into the events of a stream; False if it is not a valid answer."""
        try:
            events = _events(json_text.loads(b"".join(self._chunks)), with_usage=with_usage)
        except MALFORMED:
            return False
        self.discard()
        self.media_type = EVENT_STREAM
        self._keep(events)
        return True

    async def relay(self) -> AsyncGenerator[bytes, None]:
        """Yield its chunks, also those that still arrive. Raises the ExpertError that breaks the answer off."""
        self._relayed = True
        self._room.set()
        while True:
            while self._chunks:
                chunk = self._chunks.popleft()
                yield chunk
                self._size -= len(chunk)
                self._held.add(-len(chunk))
                self._room.set()
            if self.error is not None:
                raise self.error
            if self.settled:
                return
            self._news.clear()
            await self._news.wait()


def _events(answer: dict[str, Any], *, with_usage: bool) -> bytes:
    """Return a non-streaming answer of one choice as a stream: text, finish reason and usage, one event each."""
    choice = answer["choices"][0]
    shared: dict[str, Any] = {"object": "chat.completion.chunk"}
    shared |= {name: answer[name] for name in ("id", "created", "model") if name in answer}

    def event(delta: dict[str, Any], finish: str | None) -> bytes:
        chunk: dict[str, Any] = {**shared, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        return b"data: " + json_text.dumps(chunk) + b"\n\n"

    text = event({"role": "assistant", "content": choice["message"]["content"]}, None)
    finish = event({}, choice.get("finish_reason") or "stop")
    usage = answer.get("usage") if with_usage else None
    used = b"" if usage is None else b"data: " + json_text.dumps({**shared, "choices": [], "usage": usage}) + b"\n\n"
    return text + finish + used + sse.DONE
