"""Requests one answer from one expert, with retries: returns its text, or raises the error that remains."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from coe.core import Call, Expert
from coe.errors import ExpertError, ExpertInvalidResponse

_HEADERS = {"x-coe-retrieval": "off", "x-coe-purpose": "score"}
"""For an expert behind the gateway: add no passages, and do not count the request as a user's."""

CUT_REASON = "length"
"""The `finish_reason` of an answer that ran out of tokens."""


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """Timeout of a whole answer and number of attempts; the pause between attempts doubles up to its maximum."""

    answer_seconds: float = 600.0
    attempts: int = 4
    pause_seconds: float = 0.5
    max_pause_seconds: float = 8.0

    def pause_after(self, attempt: int) -> float:
        """Seconds to wait after a failed attempt, the first being 1."""
        return float(min(self.pause_seconds * 2 ** (attempt - 1), self.max_pause_seconds))


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """An expert's answer. `latency_ms` is that of the last attempt alone."""

    text: str = field(repr=False)
    input_tokens: int | None
    output_tokens: int | None
    latency_ms: float
    finish_reason: str | None

    @property
    def cut(self) -> bool:
        """True if the answer ran out of tokens."""
        return self.finish_reason == CUT_REASON


async def request_answer(expert: Expert, messages: Sequence[Mapping[str, Any]], *, limits: RetryLimits) -> ProbeAnswer:
    """Request an answer until there is one. Raises the last ExpertError, at once where a retry cannot help."""
    for attempt in range(1, limits.attempts + 1):
        try:
            return await _request_once(expert, messages, limits.answer_seconds)
        except ExpertError as error:
            if not error.retryable or attempt == limits.attempts:
                raise
        await asyncio.sleep(limits.pause_after(attempt))
    raise AssertionError("RetryLimits allow at least one attempt")


async def _request_once(expert: Expert, messages: Sequence[Mapping[str, Any]], seconds: float) -> ProbeAnswer:
    began = time.perf_counter()
    # not streamed: some servers report token counts only then
    fields = {"messages": list(messages), "stream": False}
    reply = await expert.stream(Call(fields, False, seconds, seconds, headers=_HEADERS))
    try:
        body = b"".join([chunk async for chunk in reply.chunks()])
    finally:
        await reply.aclose()
    latency = (time.perf_counter() - began) * 1000
    text, finish_reason = _first_choice(body, expert.name)
    return ProbeAnswer(text, reply.usage.input_tokens, reply.usage.output_tokens, round(latency, 1), finish_reason)


def _first_choice(body: bytes, expert: str) -> tuple[str, str | None]:
    """The text of a chat completion and its finish reason. A message without content is an empty answer."""
    try:
        choice = orjson.loads(body)["choices"][0]
        content = choice["message"].get("content") or ""
        if not isinstance(content, str):
            raise TypeError("content is not text")
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        raise ExpertInvalidResponse(
            f"expert {expert!r} answered no chat completion ({error!r})", expert=expert
        ) from None
    reason = choice.get("finish_reason")
    return content, reason if isinstance(reason, str) else None
