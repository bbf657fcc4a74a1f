"""Requests one answer from one expert or recipe, with retries: returns its text, or raises the error that remains."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from coe.core import Call, Expert
from coe.errors import ExpertError, ExpertInvalidResponse, ExpertRejected, ExpertUnavailable
from coe.records.record import RecipeCall
from coe.usage import RecipeLog

_HEADERS = {"x-coe-retrieval": "off", "x-coe-purpose": "score", "x-coe-cache": "off"}
"""Headers of requests through the gateway: no passages, no answer cache, and not counted as a user's request."""

_ANSWERED = ("answered", "unreadable", "unverified")
_FINAL = ("rejected", "unsupported")
"""Outcomes of a member that a retry cannot change."""


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """Timeout of a whole answer, number of attempts, and the first pause between them, which doubles."""

    answer_seconds: float = 600.0
    attempts: int = 4
    pause_seconds: float = 0.5


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """An expert's answer. `latency_ms` is that of the last attempt alone. `calls` are those of a recipe."""

    text: str = field(repr=False)
    input_tokens: int | None
    output_tokens: int | None
    latency_ms: float
    finish_reason: str | None
    calls: tuple[RecipeCall, ...] = ()


async def request_answer(
    expert: Expert, messages: Sequence[Mapping[str, Any]], *, limits: RetryLimits, max_tokens: int | None = None
) -> ProbeAnswer:
    """Request an answer, of at most `max_tokens`, until there is one. Raises the last ExpertError, at once where a
    retry cannot help."""
    # not streamed: some servers report token counts only then
    fields: dict[str, Any] = {"messages": list(messages), "stream": False}
    if max_tokens is not None:
        fields["max_tokens"] = max_tokens
    for attempt in range(1, limits.attempts + 1):
        try:
            return await _request_once(expert, fields, limits.answer_seconds)
        except ExpertError as error:
            if not error.retryable or attempt == limits.attempts:
                raise
        await asyncio.sleep(limits.pause_seconds * 2 ** (attempt - 1))
    raise AssertionError("RetryLimits allow at least one attempt")


async def _request_once(expert: Expert, fields: Mapping[str, Any], seconds: float) -> ProbeAnswer:
    began, log = time.perf_counter(), RecipeLog()
    optional = frozenset(("max_tokens",)) & fields.keys()
    call = Call(fields, False, seconds, seconds, headers=_HEADERS, recipe_log=log, optional=optional)
    reply = await expert.stream(call)
    try:
        body = b"".join([chunk async for chunk in reply.chunks()])
    finally:
        await reply.aclose()
    latency = (time.perf_counter() - began) * 1000
    text, finish_reason = _first_choice(body, expert.name)
    usage, calls = reply.usage, _uses(log, expert.name)
    return ProbeAnswer(text, usage.input_tokens, usage.output_tokens, round(latency, 1), finish_reason, calls)


def _uses(log: RecipeLog, recipe: str) -> tuple[RecipeCall, ...]:
    """The calls of a recipe, none of an expert. Raises an ExpertError if a member gave no answer: the score would be
    that of another recipe."""
    failed = next((call for call in log.calls if call.outcome not in _ANSWERED), None)
    if failed is not None or log.stop not in ("", "last_step"):
        why = log.stop if failed is None else f"its member {failed.expert!r} gave no answer: {failed.outcome}"
        message = f"the answer of {recipe!r} is incomplete ({why})"
        if failed is not None and failed.outcome in _FINAL:
            raise ExpertRejected(message, expert=recipe, status=400)
        raise ExpertUnavailable(message, expert=recipe)
    return tuple(map(RecipeCall.of, log.calls))


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
