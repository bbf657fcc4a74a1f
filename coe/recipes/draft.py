"""`Draft`: one call to a member of a recipe, whose answer is buffered until the recipe returns or discards it.

A separate task reads each draft, so that the members of a step answer at the same time. The chunks of a returned draft
go to the client unchanged; if the answer is not complete, the task still reads the rest.

Reads the text of a complete chat answer, as JSON or as a stream.
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
from coe.experts.http.sse import EVENT_STREAM
from coe.experts.outcomes import HeldAnswer
from coe.usage import MemberCall

_INCOMPLETE_REASONS = ("length", "max_tokens", "model_length", "content_filter", "tool_calls", "function_call")
"""Finish reasons of an answer whose text is not a complete answer, as various servers write them."""


def answer_text(body: bytes, *, stream: bool) -> str | None:
    """Return the text; None if it was cut off or refused, calls a tool, or is not of Chat Completions."""
    try:
        if not stream:
            choice = json_text.loads(body)["choices"][0]
            message = choice["message"]
            content = message["content"]
            text = content if isinstance(content, str) else "\n".join(part["text"] for part in content)
            return None if _is_incomplete(choice, message) else text
        parts: list[str] = []
        for line in body.splitlines():
            if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                for choice in json_text.loads(data).get("choices") or ():
                    delta = choice.get("delta") or {}
                    if _is_incomplete(choice, delta):
                        return None
                    parts.append(delta.get("content") or "")
        return "".join(parts)
    except (ValueError, TypeError, AttributeError, LookupError):  # not of Chat Completions
        return None


def _is_incomplete(choice: dict[str, Any], message: dict[str, Any]) -> bool:
    reason = choice.get("finish_reason")
    return bool(reason in _INCOMPLETE_REASONS or message.get("refusal") or message.get("tool_calls"))


MAX_TEXT_BYTES = 2 * 2**20
"""Bytes of an answer that is read for its text; longer ones count as long free text."""
MAX_RELAY_BYTES = 2**20
"""Bytes that are read ahead of a client while an unfinished draft is relayed."""

FinalAnswer = Callable[[str], str | None]
"""Returns the normalized final answer of a text; None if there is none that can be compared."""


class HeldBytes:
    """Bytes that all drafts of one request hold. `changed` is set when a chunk arrives or is taken, and when a draft
    begins or settles."""

    def __init__(self, memory: AnswerMemory | None) -> None:
        self.changed = asyncio.Event()
        self._count = 0
        self._held = HeldAnswer(memory)

    def add(self, count: int) -> None:
        """Hold so many more bytes, fewer if the number is negative. Raises AnswerMemoryFull."""
        self._held.resize(self._count + count)
        self._count += count
        self.changed.set()


class Draft:
    """One call to a member and what it has answered so far.

    `began` is the time of the first token (event loop clock), None before it. A `settled` draft is `complete`, has an
    `error`, or was cancelled. `answer` is the final answer of a complete one, None if it cannot be compared.
    """

    def __init__(self, member: Expert, log: MemberCall, *, held: HeldBytes, final_answer: FinalAnswer) -> None:
        self.log = log
        self.media_type = ""
        self.began: float | None = None
        self.settled = self.complete = False
        self.error: Exception | None = None
        self.answer: str | None = None
        self._member = member
        self._held = held
        self._final_answer = final_answer
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._relayed = False

    @property
    def usable(self) -> bool:
        """True if it can be returned: it is complete, or a stream that has begun and is still read."""
        streams = self.began is not None and not self.settled and self.media_type == EVENT_STREAM
        return self.complete or streams

    async def read(self, call: Call) -> None:
        """Call the member and read its answer to the end, once. Never raises: only its recipe cancels it."""
        clock = asyncio.get_running_loop().time
        start = clock()
        try:
            reply = await self._member.stream(call)
            del call  # the member has the body, which may be large
            try:
                self.media_type, self.log.usage, self.began = reply.media_type, reply.usage, clock()
                self._held.changed.set()
                async with aclosing(reply.chunks()) as chunks:
                    async for chunk in chunks:
                        self._held.add(len(chunk))
                        self._chunks.append(chunk)
                        self._size += len(chunk)
                        while self._relayed and self._size > MAX_RELAY_BYTES:
                            self._held.changed.clear()
                            await self._held.changed.wait()
                self._complete()
            finally:
                await reply.aclose()
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
            self._held.changed.set()

    def _complete(self) -> None:
        """Mark the answer as complete before its connection is closed, which takes longer."""
        self.complete = self.settled = True
        if not self.log.accepted:
            text = self.text()
            self.answer = None if text is None else self._final_answer(text)
            self.log.outcome = "unreadable" if self.answer is None else "answered"
        elif self.log.outcome == "cancelled":  # relayed from its first byte
            self.log.outcome = "answered"
        self._held.changed.set()

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

    async def relay(self) -> AsyncGenerator[bytes, None]:
        """Yield its chunks, also those that still arrive. Raises the ExpertError that breaks the answer off."""
        self._relayed = True
        while True:
            while self._chunks:
                chunk = self._chunks.popleft()
                yield chunk
                self._size -= len(chunk)
                self._held.add(-len(chunk))
            if self.error is not None:
                raise self.error
            if self.settled:
                return
            self._held.changed.clear()
            await self._held.changed.wait()
