"""`MemberCalls`: the calls of one request of a recipe, and `RecipeReply`, the answer of one of them, unchanged.

It starts calls, waits for them within the limits of the request, and cancels what is left. `RecipeExpert` and
`WritingExpert` decide what to call and which answer to return.

A `Draft` is one call to a member, whose answer is buffered until the recipe returns or discards it. A separate task
reads each draft, so that the members of a step answer at the same time. The chunks of a returned draft go to the client
unchanged; if the answer is not complete, the task still reads the rest.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any

from coe import json_text
from coe.core import AnswerMemory, Call, Expert, Health
from coe.errors import ExpertError, ExpertUnavailable, InvalidRequest
from coe.experts.http.replies import HeldAnswer
from coe.experts.http.sse import EVENT_STREAM
from coe.registry import Policy
from coe.usage import MemberCall, RecipeLog, RecipeStop, RecipeUsage, Usage

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


DEADLINE_MARGIN_SECONDS = 0.5
"""Time before the request's deadline at which the best answer so far is returned."""
DEADLINE_MARGIN_SHARE = 0.1
"""The margin is at most this share of the time that the request has left when it reaches the recipe."""
VERIFIED: tuple[RecipeStop, ...] = ("accepted", "last_step")
"""The reason why a recipe stopped, if its answer was compared with all others."""


class MemberCalls:
    """The drafts of one request of a recipe, in the order of the calls.

    A stream is held back for at most `max_hold` seconds after the first token.
    """

    def __init__(
        self,
        recipe: str,
        call: Call,
        *,
        final_answer: FinalAnswer,
        limits: Policy,
        max_hold: float = math.inf,
    ) -> None:
        self.log = call.recipe_log or RecipeLog()
        self.log.recipe, self.log.stop = recipe, ""
        self.drafts: list[Draft] = []
        self._final_answer = final_answer
        self._max_calls = limits.max_calls
        self._max_hold = max_hold
        self._running: list[tuple[Draft, asyncio.Task[None]]] = []
        self._held = HeldBytes(call.memory)
        self._clock = asyncio.get_running_loop().time
        left = call.deadline - self._clock()
        self._stop_at = call.deadline - min(DEADLINE_MARGIN_SECONDS, DEADLINE_MARGIN_SHARE * left)

    async def returning(self, reply: Callable[[], Awaitable[RecipeReply]], *, most: int) -> RecipeReply:
        """Return the result of `reply`, which makes `most` calls at most. If it raises, cancel all calls.

        Raises ExpertUnavailable if so many more than those of earlier attempts exceed `policy.max_calls`.
        """
        try:
            if len(self.log.calls) + most > self._max_calls:
                message = (
                    f"recipe {self.log.recipe!r} has no {most} of the {self._max_calls} calls left that it may make"
                )
                used_up = ExpertUnavailable(message, expert=self.log.recipe)
                used_up.request_sent = False
                raise used_up
            return await reply()
        except BaseException as error:
            self.log.stop = "failed" if isinstance(error, ExpertError | InvalidRequest) else "cancelled"
            await self.aclose()
            raise

    def start(self, expert: Expert, number: int, call: Call, *, reader: FinalAnswer | None = None) -> Draft:
        """Call an expert in step `number`. An answer with a `reader` of its own is not returned, such as a judge's."""
        log = MemberCall(expert.name, number)
        self.log.calls.append(log)
        draft = Draft(expert, log, held=self._held, final_answer=reader or self._final_answer)
        if reader is None:
            self.drafts.append(draft)
        self._running.append((draft, asyncio.create_task(draft.read(call))))
        return draft

    async def settle(self, drafts: Sequence[Draft]) -> RecipeStop:
        """Wait until all these drafts are complete or have failed. Return why to stop before that, empty if they
        are."""
        return await self.wait(lambda: all(draft.settled for draft in drafts))

    async def wait(self, done: Callable[[], bool]) -> RecipeStop:
        """Wait until `done`. Return why to stop before that, empty if it is. Raises the error of a draft that is a bug,
        not a failure of its expert."""
        changed = self._held.changed
        while not (is_done := done()) and not self.due_stop():
            at, _ = self._limit()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(at if math.isfinite(at) else None):
                    await changed.wait()
            changed.clear()
        for draft, _ in self._running:
            if draft.error is not None and not isinstance(draft.error, ExpertError | InvalidRequest):
                raise draft.error
        return "" if is_done else self.due_stop()

    def _limit(self) -> tuple[float, RecipeStop]:
        """Return the time (event loop clock) and reason to stop. Infinity while there is no answer to return."""
        begun = [draft.began for draft in self.drafts if draft.usable and draft.began is not None]
        if not begun:
            return math.inf, "deadline"
        held_until = min(begun) + self._max_hold
        return (held_until, "stream_hold") if held_until < self._stop_at else (self._stop_at, "deadline")

    def due_stop(self) -> RecipeStop:
        """Return the reason not to make a further call; empty if there is none."""
        at, stop = self._limit()
        return stop if self._clock() >= at else ""

    def last_error(self) -> Exception:
        """Return the error of the last call that failed, as an error of this recipe."""
        errors = [draft.error for draft in self.drafts if draft.error is not None]
        error = errors[-1] if errors else ExpertUnavailable("all calls were cancelled", expert=self.log.recipe)
        if isinstance(error, ExpertError):
            error.expert = self.log.recipe
        return error

    def reply(self, best: Draft, stop: RecipeStop) -> RecipeReply:
        """Return this draft, discard the others, and cancel the calls that are not complete."""
        self.log.stop, best.log.accepted = stop, True
        if stop not in VERIFIED:
            best.log.outcome = "unverified"
        for draft, task in self._running:
            if draft is not best and not draft.complete:
                task.cancel()
            elif draft is not best:
                draft.discard()
        return RecipeReply(self, best)

    async def aclose(self) -> None:
        """Cancel all calls that are not complete, wait until every connection is closed, and drop what is held."""
        for draft, task in self._running:
            if not draft.complete:
                task.cancel()
        await asyncio.gather(*(task for _, task in self._running), return_exceptions=True)
        for draft, _ in self._running:
            draft.discard()


def health_of(first: Sequence[Expert], *needed: Expert) -> Health:
    """Return the health of a recipe: up while one of its `first` members and all `needed` ones are; its load is the
    largest of theirs."""
    some, every = [one.health for one in first], [one.health for one in needed]
    failed = [one for one in every if not one.up] or ([] if any(one.up for one in some) else some)
    load = max(one.load for one in (*some, *every))
    return Health(not failed, load, cause=failed[0].cause if failed else "")


class RecipeReply:
    """The answer of one member, unchanged. Its usage is the sum over all calls."""

    def __init__(self, calls: MemberCalls, draft: Draft) -> None:
        self.media_type = draft.media_type
        self.usage: Usage
        self.usage = self._total = RecipeUsage(calls.log)
        self._calls = calls
        self._draft = draft

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(self._draft.relay()) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._total.refresh()

    async def aclose(self) -> None:
        await self._calls.aclose()
        self._total.refresh()
