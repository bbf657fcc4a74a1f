"""Call the candidate experts until one sends a first chunk: fallback and retries.

All of this happens before the first byte goes to the client; after that, nothing is retried. A failed expert is retried
on another replica, then the next candidate is called. When all have failed, the expert that may answer soonest is
retried after a pause.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from coe.core import AnswerMemory, Call, Expert, Reply
from coe.errors import (
    Cause,
    ExpertBusy,
    ExpertError,
    ExpertInvalidResponse,
    ExpertTimeout,
    ExpertUnavailable,
    InvalidRequest,
)
from coe.usage import RecipeLog, SentCall

MAX_RETRY_PAUSE_SECONDS = 10.0
"""Longest wait for an expert that sent Retry-After."""
FIRST_RETRY_PAUSE_SECONDS = 0.1
"""Pause before the first retry of a sole candidate that sent no Retry-After. It doubles with each retry."""
TIMER_SLACK_SECONDS = 0.01
"""Added to a pause, as timers of the event loop may fire early by the resolution of its clock."""
_TRANSIENT_ERRORS = (ExpertUnavailable, ExpertBusy)
_REPORT_PRIORITY = (ExpertBusy, ExpertTimeout, ExpertInvalidResponse, ExpertUnavailable)
"""The error to report when all candidates fail: the first kind here, which is the most useful for a client's retry."""
_Failure = ExpertError | InvalidRequest
"""InvalidRequest: the request cannot be translated to the expert's API."""


@dataclass(slots=True, eq=False)
class Attempts:
    """Counts the attempts of one request, also if it is cancelled during one.

    `count` is the number of requests sent to experts, where a recipe counts as one. `causes` maps each failed expert to
    the cause of its first failure. `recipe_log` has the calls of recipes, None if no recipe may be called.
    `sole_expert` is the name of the expert that is being called if no other expert can take over, else empty.
    `dropped` has what experts left out (`Call.dropped`). `memory` is that for the answers (`Call.memory`). `sent`
    has the calls that reached a server and that it may bill, those of a recipe's members too (`Call.sent`).
    """

    count: int = 0
    causes: dict[str, Cause] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    memory: AnswerMemory | None = None
    recipe_log: RecipeLog | None = None
    sole_expert: str = ""
    sent: list[SentCall] = field(default_factory=list)


async def call_experts(
    call: Call,
    experts: Sequence[Expert],
    *,
    max_attempts: int,
    deadline: float,
    attempts: Attempts,
) -> tuple[str, Reply]:
    """Call `experts` in order until one sends a first chunk, at most `max_attempts` times. Return its name and reply.

    - An expert whose server just refused a connection is skipped and costs no attempt.
    - A failed expert with another ready replica is retried there before the next candidate is called.
    - When all have failed, the expert with the earliest Retry-After is retried then, if that is before `deadline`
      (event loop clock). A sole candidate that is unavailable is retried after a short pause.

    Raises at once if the first expert that judges the request rejects it. If others failed before with a transient
    error, a rejection is not final. When nothing is left to try, raises the most informative error.
    """
    schedule = _Schedule(call, experts, max_attempts, attempts)
    loop = asyncio.get_running_loop()
    while True:
        attempt, pause = schedule.next(deadline - loop.time())
        if pause:
            schedule.note_sole_expert(attempt)
            await asyncio.sleep(pause)
        schedule.start(attempt)
        try:
            return attempt.expert.name, await attempt.expert.stream(attempt.call)
        except (ExpertError, InvalidRequest) as error:
            schedule.failed(attempt, error)


@dataclass(frozen=True, slots=True, eq=False)
class _Attempt:
    """One call to one expert. `is_retry`: the expert has failed before, so any of its replicas may be selected."""

    expert: Expert
    call: Call
    is_retry: bool = False

    def retry(self, *, exclude: frozenset[str] = frozenset()) -> _Attempt:
        """Return a second attempt. After a pause nothing is excluded: an unreachable server may be back."""
        return _Attempt(self.expert, replace(self.call, conversation=b"", exclude=exclude), is_retry=True)


class _Schedule:
    """Attempts made and failed for one request, and the attempt to make next."""

    def __init__(self, call: Call, experts: Sequence[Expert], max_attempts: int, attempts: Attempts) -> None:
        self._call = call
        self._candidates = deque(experts)
        self._replica_retry: _Attempt | None = None
        self._sole_candidate = len(experts) == 1
        self._excluded: frozenset[str] = frozenset()
        self._remaining = max_attempts
        self._attempts = attempts
        self._pause = FIRST_RETRY_PAUSE_SECONDS
        self._errors: list[ExpertError] = []
        self._untranslatable: InvalidRequest | None = None
        self._retryable: list[tuple[_Attempt, ExpertError]] = []  # failures not yet retried

    def next(self, seconds_left: float) -> tuple[_Attempt, float]:
        """Return the next attempt and the pause before it, which is 0 until all experts have failed. Raises the final
        error if there is none."""
        if self._remaining and (attempt := self._replica_retry) is not None:
            self._replica_retry = None
            return attempt, 0.0
        if self._remaining and self._candidates:
            call = replace(self._call, exclude=self._excluded) if self._excluded else self._call
            return _Attempt(self._candidates.popleft(), call), 0.0
        return self._retry(seconds_left)

    def start(self, attempt: _Attempt) -> None:
        """Count an attempt."""
        self._remaining -= 1
        self._attempts.count += 1
        self.note_sole_expert(attempt)

    def note_sole_expert(self, attempt: _Attempt) -> None:
        """Note in the attempts whether another expert can take over if this attempt fails."""
        self._attempts.sole_expert = ""
        if self._candidates:
            return
        if all(
            other.expert is attempt.expert
            for other, error in self._retryable
            if error.request_sent and error.retry_after is not None
        ):
            self._attempts.sole_expert = attempt.expert.name

    def failed(self, attempt: _Attempt, error: _Failure) -> None:
        """Note a failed attempt. Raises the error if no further attempt can help."""
        cause = "unsupported" if isinstance(error, InvalidRequest) else error.cause
        self._attempts.causes.setdefault(attempt.expert.name, cause)
        error.drop_frames()
        if isinstance(error, InvalidRequest) or not error.request_sent:
            self._remaining += 1
            self._attempts.count -= 1
        if isinstance(error, InvalidRequest):
            self._untranslatable = self._untranslatable or error
            return
        if not error.retryable and not self._errors:
            raise error
        self._errors.append(error)
        if error.retryable:
            if isinstance(error, ExpertUnavailable):
                self._excluded |= error.unavailable_servers
            self._retryable.append((attempt, error))
            if not attempt.is_retry and attempt.expert.health.ready_replicas > 1:
                self._replica_retry = attempt.retry(exclude=self._excluded)

    def _retry(self, seconds_left: float) -> tuple[_Attempt, float]:
        """Return the attempt to retry and the pause before it. Raises the final error if nothing can be retried.

        Only experts that received the request are waited for. Otherwise all requests for a server that is down would
        accumulate here.
        """
        received = [(attempt, error) for attempt, error in self._retryable if error.request_sent]
        pauses = [
            (error.retry_after * random.uniform(1, 1.1) + TIMER_SLACK_SECONDS, attempt)  # noqa: S311
            for attempt, error in received
            if error.retry_after is not None and error.retry_after <= MAX_RETRY_PAUSE_SECONDS
        ]
        if self._sole_candidate and received:
            attempt, error = received[0]
            if error.retry_after is None and isinstance(error, _TRANSIENT_ERRORS):
                pauses = [(self._pause * random.uniform(0.5, 1.5), attempt)]  # noqa: S311
                self._pause *= 2
        pause, chosen = min(pauses, key=lambda one: one[0], default=(seconds_left, None))
        if chosen is None or not self._remaining or pause >= seconds_left:
            raise self._final_error()
        self._retryable = [failure for failure in self._retryable if failure[0] is not chosen]
        return chosen.retry(), pause

    def _final_error(self) -> _Failure:
        """Return the most informative error; among equal ones the first, of the best candidate."""
        if not self._errors and self._untranslatable is not None:
            return self._untranslatable
        error = min(self._errors, key=_report_rank)
        pauses = [error.retry_after for _, error in self._retryable if error.retry_after is not None]
        error.retry_after = min(pauses, default=None)
        return error


def _report_rank(error: ExpertError) -> tuple[bool, int]:
    ranks = (rank for rank, kind in enumerate(_REPORT_PRIORITY) if isinstance(error, kind))
    return not error.request_sent, next(ranks, len(_REPORT_PRIORITY))
