"""Cached answers: their stored form, the bytes of a reply while it is relayed, and the test for completeness.

The stored form is one line of JSON, then the answer's bytes.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel

from coe import json_text
from coe.core import AnswerMemory, Api, Decision, Prediction
from coe.errors import AnswerMemoryFull
from coe.experts.held_answer import HeldAnswer
from coe.experts.http import sse
from coe.experts.http.sse import EVENT_STREAM

MAX_ANSWER_BYTES = 2**20
"""Bytes of an answer that is stored."""
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, LookupError)
"""Errors of reading an answer or an entry that does not have the expected form."""
_RESPONSE_COMPLETED = sse.EventTypes("response.completed")
_MESSAGE_DELTA = sse.EventTypes("message_delta")


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """An answer in the cache.

    `expert` is the expert or arm that was chosen, `answered_by` the expert, or the member of a recipe, that wrote the
    answer. `prediction` is that of the request that filled the cache.
    """

    media_type: str
    body: bytes = field(repr=False)
    expert: str
    answered_by: str
    category: str
    confidence: float
    prediction: Prediction
    input_tokens: int | None
    output_tokens: int | None

    @property
    def decision(self) -> Decision:
        """The decision of a request that gets this answer. Its reason excludes it from off-policy estimates."""
        return Decision(self.expert, self.category, self.confidence, "cached", (self.expert,))

    def to_bytes(self) -> bytes:
        """Return the stored form."""
        prediction = self.prediction
        before_rule = prediction.router_probabilities
        head = _StoredHead(
            media_type=self.media_type,
            expert=self.expert,
            answered_by=self.answered_by,
            category=self.category,
            confidence=self.confidence,
            tokens=(self.input_tokens, self.output_tokens),
            probabilities=prediction.probabilities.tolist(),
            stage=prediction.stage,
            in_distribution=prediction.in_distribution,
            language=prediction.language,
            router_probabilities=None if before_rule is None else before_rule.tolist(),
        )
        return b"%b\n%b" % (head.model_dump_json().encode(), self.body)

    @classmethod
    def from_bytes(cls, stored: bytes) -> Self:
        """Return the answer. Raises ValueError for anything else."""
        line, _, body = stored.partition(b"\n")
        head = _StoredHead.model_validate_json(line)
        before_rule = head.router_probabilities
        prediction = Prediction(
            np.array(head.probabilities, dtype=np.float32),
            head.stage,
            head.in_distribution,
            None if before_rule is None else np.array(before_rule, dtype=np.float32),
            head.language,
        )
        return cls(
            head.media_type,
            body,
            head.expert,
            head.answered_by,
            head.category,
            head.confidence,
            prediction,
            *head.tokens,
        )


class _StoredHead(BaseModel, strict=True):
    """The first line of a stored answer."""

    media_type: str
    expert: str
    answered_by: str
    category: str
    confidence: float
    tokens: tuple[int | None, int | None]
    probabilities: list[float]
    stage: str
    in_distribution: float
    language: str
    router_probabilities: list[float] | None


class CacheUse:
    """Cache state of one request: its key, and the cached answer (hit) or the captured bytes of its reply (miss).

    Captured bytes are dropped if they exceed MAX_ANSWER_BYTES or find no `memory`.
    """

    __slots__ = ("_chunks", "_held", "_size", "answer", "choices", "key")

    def __init__(self, key: bytes, answer: CachedAnswer | None, *, choices: int, memory: AnswerMemory | None) -> None:
        self._held = HeldAnswer(memory)
        self.key = key
        self.answer = answer
        self.choices = choices
        """Number of answers that a complete response has."""
        self._chunks: list[bytes] = []
        self._size: float = 0

    @property
    def result(self) -> Literal["hit", "miss"]:
        return "miss" if self.answer is None else "hit"

    def keep(self, chunk: bytes) -> None:
        """Keep the next bytes of the answer."""
        self._size += len(chunk)
        if self._size <= MAX_ANSWER_BYTES:
            with suppress(AnswerMemoryFull):
                self._held.resize(int(self._size))
                self._chunks.append(chunk)
                return
        self.release()
        self._size = math.inf

    def release(self) -> None:
        """Drop the bytes that are kept."""
        self._held.resize(0)
        self._chunks.clear()

    @property
    def body(self) -> bytes | None:
        """All bytes kept; None without any, or if there were too many."""
        return b"".join(self._chunks) or None


def is_complete(body: bytes, *, api: Api, media_type: str, choices: int) -> bool:
    """Return whether the answer ended by itself: not cut off, not filtered, without a call of a tool.

    An answer in an unexpected form is not complete.
    """
    try:
        if media_type == EVENT_STREAM:
            return _is_complete_stream(body, api, choices)
        return _is_complete_answer(json_text.loads(body), api, choices)
    except _MALFORMED:
        return False


def _is_complete_answer(answer: dict[str, Any], api: Api, choices: int) -> bool:
    if api == "responses":
        return answer["status"] == "completed" and all(
            item["type"] in ("message", "reasoning") for item in answer["output"]
        )
    if api == "messages":
        return answer["stop_reason"] in ("end_turn", "stop_sequence")
    reasons = [choice["finish_reason"] for choice in answer["choices"]]
    return len(reasons) == choices and set(reasons) == {"stop"}


def _is_complete_stream(events: bytes, api: Api, choices: int) -> bool:
    if api == "responses":
        found = list(_RESPONSE_COMPLETED.find(events))
        return len(found) == 1 and _is_complete_answer(found[0]["response"], api, choices)
    if api == "messages":
        stops = [event["delta"].get("stop_reason") for event in _MESSAGE_DELTA.find(events)]
        return any(stops) and all(stop in (None, "end_turn", "stop_sequence") for stop in stops)
    reasons = dict(sse.finish_reasons(events))
    return sse.done(events) and len(reasons) == choices and set(reasons.values()) == {"stop"}
