"""Cached answers: their stored form, the bytes of a reply while it is relayed, and the test for completeness.

The stored form is one line of JSON, then the answer's bytes.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, Field

from coe import json_text
from coe.core import AnswerMemory, Decision, Prediction
from coe.errors import AnswerMemoryFull
from coe.experts.http import sse
from coe.experts.http.replies import HeldAnswer
from coe.experts.http.sse import EVENT_STREAM

MAX_ANSWER_BYTES = 2**20
"""Bytes of an answer that is stored."""


class CachedAnswer(BaseModel, strict=True, frozen=True):
    """An answer in the cache.

    `expert` is the expert or arm that was chosen, `answered_by` the expert, or the member of a recipe, that wrote the
    answer. The fields from `probabilities` on are the prediction of the request that filled the cache.
    """

    media_type: str
    expert: str
    answered_by: str
    category: str
    confidence: float
    input_tokens: int | None
    output_tokens: int | None
    probabilities: list[float]
    stage: str
    in_distribution: float
    language: str
    router_probabilities: list[float] | None
    body: bytes = Field(b"", exclude=True, repr=False)

    @property
    def decision(self) -> Decision:
        """The decision of a request that gets this answer. Its reason excludes it from off-policy estimates."""
        return Decision(self.expert, self.category, self.confidence, "cached", (self.expert,))

    @property
    def prediction(self) -> Prediction:
        """The prediction of a request that gets this answer."""
        before_rule = None if self.router_probabilities is None else np.array(self.router_probabilities, np.float32)
        probabilities = np.array(self.probabilities, np.float32)
        return Prediction(probabilities, self.stage, self.in_distribution, before_rule, self.language)

    def to_bytes(self) -> bytes:
        """Return the stored form."""
        return b"%b\n%b" % (self.model_dump_json().encode(), self.body)

    @classmethod
    def from_bytes(cls, stored: bytes) -> Self:
        """Return the answer. Raises ValueError for anything else."""
        head, _, body = stored.partition(b"\n")
        return cls.model_validate_json(head).model_copy(update={"body": body})


class CacheUse:
    """Cache state of one request: its key, and the cached answer (hit) or the captured bytes of its reply (miss).

    Captured bytes are dropped if they exceed MAX_ANSWER_BYTES or find no `memory`.
    """

    __slots__ = ("_chunks", "_held", "_size", "answer", "key")

    def __init__(self, key: str, answer: CachedAnswer | None, *, memory: AnswerMemory | None) -> None:
        self._held = HeldAnswer(memory)
        self.key = key
        self.answer = answer
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


def is_complete(body: bytes, *, media_type: str) -> bool:
    """Return whether the one answer of Chat Completions ended by itself: not cut off, not filtered, without a call of a
    tool. An answer in an unexpected form is not complete."""
    try:
        if media_type == EVENT_STREAM:
            return sse.done(body) and [*dict(sse.finish_reasons(body)).values()] == ["stop"]
        return [choice["finish_reason"] for choice in json_text.loads(body)["choices"]] == ["stop"]
    except (ValueError, TypeError, LookupError, AttributeError):
        return False
