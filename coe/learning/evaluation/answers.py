"""One question to one expert, with bounded patience: the answer's text, or the error that remains after retries."""

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
"""For an expert that is reached through the gateway: add no passages, and do not count the request as a user's."""


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """How long to wait for a whole answer, in seconds, and how often to ask: with a pause that doubles in between."""

    answer: float = 600.0
    attempts: int = 4
    pause: float = 0.5
    longest_pause: float = 8.0

    def pause_after(self, attempt: int) -> float:
        """Seconds to wait after a failed attempt, the first being 1."""
        return float(min(self.pause * 2 ** (attempt - 1), self.longest_pause))


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """What an expert said. `latency_ms` is the last attempt's alone; `cut` says that it ran out of tokens."""

    text: str = field(repr=False)
    input_tokens: int | None
    output_tokens: int | None
    latency_ms: float
    cut: bool


async def ask(expert: Expert, messages: Sequence[Mapping[str, Any]], *, patience: RetryLimits) -> ProbeAnswer:
    """Ask until there is an answer. Raises the last ExpertError, at once where asking again cannot help."""
    for attempt in range(1, patience.attempts + 1):
        try:
            return await _ask_once(expert, messages, patience.answer)
        except ExpertError as error:
            if not error.retryable or attempt == patience.attempts:
                raise
        await asyncio.sleep(patience.pause_after(attempt))
    raise AssertionError("patience has at least one attempt")


async def _ask_once(expert: Expert, messages: Sequence[Mapping[str, Any]], limit: float) -> ProbeAnswer:
    began = time.perf_counter()
    # in one piece: only so do all servers tell the token counts
    fields = {"messages": list(messages), "stream": False}
    reply = await expert.stream(Call(fields, False, limit, limit, headers=_HEADERS))
    try:
        body = b"".join([chunk async for chunk in reply.chunks()])
    finally:
        await reply.aclose()
    latency = (time.perf_counter() - began) * 1000
    text, cut = _first_choice(body, expert.name)
    return ProbeAnswer(text, reply.usage.input_tokens, reply.usage.output_tokens, round(latency, 1), cut)


def _first_choice(body: bytes, expert: str) -> tuple[str, bool]:
    """The text of a chat completion and whether it was cut short. A message without content is an empty answer."""
    try:
        choice = orjson.loads(body)["choices"][0]
        content = choice["message"].get("content") or ""
        if not isinstance(content, str):
            raise TypeError("content is not text")
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        raise ExpertInvalidResponse(
            f"expert {expert!r} answered no chat completion ({error!r})", expert=expert
        ) from None
    return content, choice.get("finish_reason") == "length"
