"""Implicit feedback: detects a regenerated answer and an abandoned stream, after the request has ended.

These signals are weak evidence, as a retry or a closed window may have any cause; learning weighs them accordingly
(`coe/learning/estimation/experience.py`).
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from coe.records import Pending
from coe.records.feedback import Feedback, FeedbackKind
from gateway.request.trace import Trace

MAX_REGENERATION_SECONDS = 300.0
"""Time after an answer within which the same conversation is a regeneration."""
MIN_REGENERATION_SECONDS = 1.0
"""Time after an answer before which it is not: a client that is faster is a program, not a reader."""
MAX_REGENERATIONS = 3
"""Regenerations of one conversation that are reported; a client with more is a program."""
MIN_CHARACTERS = 40
"""Conversations below this length are compared only within a session: many users say "hello"."""
MAX_CONVERSATIONS = 10_000
"""Latest conversations that are remembered, about 300 bytes each."""


@dataclass(frozen=True, slots=True)
class _LastAnswer:
    """The last answer to a conversation: its request, its time in Unix seconds, and the number of retries before it."""

    request_id: str
    time: float
    retries: int


class SignalDetector:
    """Detects signals in finished requests. It remembers conversations in memory, so each worker process sees its
    own."""

    def __init__(self) -> None:
        self._answers: OrderedDict[bytes, _LastAnswer] = OrderedDict()

    def detect(self, trace: Trace, *, now: float) -> tuple[Feedback, ...]:
        """The signals of a request that ended `now` (Unix seconds); none for requests of CoE's own commands."""
        if trace.options is not None and trace.options.purpose:
            return ()
        signals = []
        if trace.client_left and trace.reply is not None and trace.chat is not None and trace.chat.stream:
            signals.append(_signal("abandoned", trace.request_id, trace, now=now))
        if (key := _conversation_key(trace)) is not None:
            previous = self._answers.get(key)
            is_retry = (
                previous is not None
                and MIN_REGENERATION_SECONDS <= trace.time - previous.time <= MAX_REGENERATION_SECONDS
            )
            retries = previous.retries + 1 if is_retry and previous is not None else 0
            if is_retry and previous is not None and retries <= MAX_REGENERATIONS:
                signals.append(_signal("regenerated", previous.request_id, trace, now=now))
            self._remember(key, _LastAnswer(trace.request_id, now, retries))
        return tuple(signals)

    def _remember(self, key: bytes, answered: _LastAnswer) -> None:
        self._answers[key] = answered
        self._answers.move_to_end(key)
        if len(self._answers) > MAX_CONVERSATIONS:
            self._answers.popitem(last=False)


def _is_regeneration(pause: float) -> bool:
    """Whether a repetition `pause` seconds after the answer is one by the reader."""
    return MIN_REGENERATION_SECONDS <= pause <= MAX_REGENERATION_SECONDS


def _conversation_key(trace: Trace) -> bytes | None:
    """A digest of an answered conversation and its tenant; None for other requests, and where it was not answered."""
    chat, session = trace.chat, trace.options.session if trace.options else None
    if chat is None or not chat.messages or chat.api == "embeddings":
        return None
    if trace.outcome != "ok" and not (trace.client_left and trace.reply is not None):
        return None
    if session is None and chat.characters < MIN_CHARACTERS:
        return None
    identity = f"{trace.caller.tenant}\0{session}\0{chat.api}\0{len(chat.messages)}\0{chat.characters}\0{trace.text}"
    return hashlib.blake2b(identity.encode("utf-8", "replace"), digest_size=16).digest()


def _signal(kind: FeedbackKind, request_id: str, trace: Trace, *, now: float) -> Feedback:
    caller = trace.caller
    return Feedback(f"{kind}:{trace.request_id}", request_id, now, kind, tenant=caller.tenant, key=caller.key)


class ImplicitSignals:
    """An observer that never waits and never raises; `store` receives the detected feedback."""

    def __init__(self, store: Callable[[Pending], None]) -> None:
        self._detector = SignalDetector()
        self._store = store

    def observe(self, trace: Trace) -> None:
        """Processes a finished request."""
        for event in self._detector.detect(trace, now=time.time()):
            self._store(Pending(event))
