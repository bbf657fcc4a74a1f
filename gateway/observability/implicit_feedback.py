"""Implicit signals: an answer asked for again, a stream left in the middle; noticed and written after the answer.

Weak evidence, recorded as what it is: a second try or a closed window may have any reason, and learning weighs it so
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
        """The signals of a request that ended `now` (Unix seconds); none for those of CoE's own commands."""
        if trace.options is not None and trace.options.purpose:
            return ()
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
    chat, session = trace.chat, trace.options.session if trace.options else None
    if chat is None or not chat.messages or chat.api == "embeddings":
        return None
    if trace.outcome != "ok" and not (trace.left and trace.reply is not None):
        return None
    if session is None and chat.characters < SHORTEST:
        return None
    shape = f"{trace.caller.tenant}\0{session}\0{chat.api}\0{len(chat.messages)}\0{chat.characters}\0{trace.text}"
    return hashlib.blake2b(shape.encode("utf-8", "replace"), digest_size=16).digest()


def _signal(kind: FeedbackKind, request_id: str, trace: Trace, *, now: float) -> Feedback:
    caller = trace.caller
    return Feedback(f"{kind}:{trace.request_id}", request_id, now, kind, tenant=caller.tenant, key=caller.key)


class ImplicitSignals:
    """An observer that never waits and never raises; `keep` takes what it notices."""

    def __init__(self, keep: Callable[[Pending], None]) -> None:
        self._notices = Notices()
        self._keep = keep

    def observe(self, trace: Trace) -> None:
        """Notice a finished request."""
        for event in self._notices.of(trace, now=time.time()):
            self._keep(Pending(event))
