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
    loop = asyncio.get_running_loop()
    queue = deque((expert, False) for expert in experts)
    """Experts to call, and whether each is called again: then any of its replicas may be selected."""
    failures: list[tuple[Expert, ExpertError]] = []  # transient ones of experts that were not called again
    errors: list[ExpertError] = []
    untranslatable: InvalidRequest | None = None
    excluded, remaining, pause = frozenset[str](), max_attempts, FIRST_RETRY_PAUSE_SECONDS
    while True:
        seconds = 0.0
        if remaining and queue:
            expert, is_retry = queue.popleft()
        else:
            found = _next_retry(failures, pause if len(experts) == 1 else None)
            if found is None or not remaining or found[0] >= deadline - loop.time():
                raise _final_error(errors, failures, untranslatable)
            (seconds, expert), is_retry = found, True
            failures = [failure for failure in failures if failure[0] is not expert]
            excluded, pause = frozenset(), 2 * pause  # a server that was unreachable may be back
        others = [other for other, error in failures if error.request_sent and error.retry_after is not None]
        attempts.sole_expert = "" if queue or any(other is not expert for other in others) else expert.name
        if seconds:
            await asyncio.sleep(seconds)
        remaining -= 1
        attempts.count += 1
        try:
            if is_retry or excluded:
                conversation = b"" if is_retry else call.conversation
                return expert.name, await expert.stream(replace(call, conversation=conversation, exclude=excluded))
            return expert.name, await expert.stream(call)
        except InvalidRequest as error:
            attempts.causes.setdefault(expert.name, "unsupported")
            error.drop_frames()
            untranslatable = untranslatable or error
            is_free = True
        except ExpertError as error:
            attempts.causes.setdefault(expert.name, error.cause)
            error.drop_frames()
            is_free = not error.request_sent
            if not error.retryable and not errors:
                attempts.count -= is_free
                raise
            errors.append(error)
            if error.retryable:
                failures.append((expert, error))
                excluded |= error.unavailable_servers if isinstance(error, ExpertUnavailable) else frozenset()
                if not is_retry and expert.health.ready_replicas > 1:
                    queue.appendleft((expert, True))
        remaining += is_free
        attempts.count -= is_free


def _next_retry(
    failures: Sequence[tuple[Expert, ExpertError]], sole_pause: float | None
) -> tuple[float, Expert] | None:
    """Return the expert to call again first and the pause before it; None if none can be. `sole_pause` is that of a
    sole candidate that sent no Retry-After.

    Only experts that received the request are waited for. Otherwise all requests for a server that is down would
    accumulate here.
    """
    pauses: list[tuple[float, Expert]] = []
    for expert, error in failures:
        if error.request_sent and error.retry_after is not None and error.retry_after <= MAX_RETRY_PAUSE_SECONDS:
            seconds = error.retry_after * random.uniform(1, 1.1) + TIMER_SLACK_SECONDS  # noqa: S311
            pauses.append((seconds, expert))
        elif error.request_sent and error.retry_after is None and sole_pause and isinstance(error, _TRANSIENT_ERRORS):
            pauses.append((sole_pause * random.uniform(0.5, 1.5), expert))  # noqa: S311
    return min(pauses, key=lambda one: one[0], default=None)


def _final_error(
    errors: Sequence[ExpertError],
    failures: Sequence[tuple[Expert, ExpertError]],
    untranslatable: InvalidRequest | None,
) -> ExpertError | InvalidRequest:
    """Return the most informative error; among equal ones the first, of the best candidate."""
    if not errors and untranslatable is not None:
        return untranslatable

    def rank(error: ExpertError) -> tuple[bool, int]:
        kinds = (rank for rank, kind in enumerate(_REPORT_PRIORITY) if isinstance(error, kind))
        return not error.request_sent, next(kinds, len(_REPORT_PRIORITY))

    error = min(errors, key=rank)
    pauses = [error.retry_after for _, error in failures if error.retry_after is not None]
    error.retry_after = min(pauses, default=None)
    return error
