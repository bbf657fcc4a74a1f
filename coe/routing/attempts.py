"""From the order of candidates to a first piece: ask, ask elsewhere, ask again later, or ask two at once.

All of it happens before the first byte goes to the client; after that nothing is asked again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from coe.core import Call, Expert, Reply
from coe.errors import (
    Cause,
    ExpertBusy,
    ExpertError,
    ExpertInvalidResponse,
    ExpertTimeout,
    ExpertUnavailable,
    InvalidRequest,
)

LONGEST_PAUSE = 10.0
"""Seconds that a request waits for an expert that said when to come again."""
FIRST_PAUSE = 0.1
"""Seconds before a lone expert is asked again that refused without saying when; doubles each time."""
SLACK = 0.01
"""Seconds more than asked for: an event loop's timers may be early by its clock's resolution."""
_PASSING = (ExpertUnavailable, ExpertBusy)
"""What may be over a moment later."""
_Failure = ExpertError | InvalidRequest
"""An InvalidRequest: the request could not be put to this expert, whose API has no words for it."""
_TELLING = (ExpertBusy, ExpertTimeout, ExpertInvalidResponse, ExpertUnavailable)


class Attempts:
    """Those of one request, counted while they are made: it may end amid one. `begun` counts none that did not come to
    its expert. `causes` holds the first failure of each expert, by its name."""

    __slots__ = ("begun", "causes")

    def __init__(self) -> None:
        self.begun = 0
        self.causes: dict[str, Cause] = {}


@dataclass(frozen=True, slots=True)
class Accepted:
    """Who gave the first piece, and the reply."""

    expert: str
    reply: Reply


async def first_answer(
    call: Call,
    experts: Sequence[Expert],
    *,
    max_attempts: int,
    deadline: float,
    attempts: Attempts,
    hedge: bool = False,
) -> Accepted:
    """Ask the experts in turn, `max_attempts` times in all, until one gives a first piece. Each is counted in
    `attempts`.

    An expert at a server that just took no connection, or that was started here and is full, is passed over, at no
    attempt. One with other replicas ready is asked a second time before the next in line. When all have failed, the one
    that named the soonest time to come again is waited for, if that is before `deadline` (by the event loop's clock); a
    lone expert that refused or broke off is asked again after a short pause. With `hedge`, an expert whose stream
    begins later than 95 % of its latest ones did gets company: the first piece of either counts, the other one is given
    up. Raises at once where the first to judge the request rejects it, as others would; where some failed only for a
    time, one that rejects it is no reason to have the client give up. Else raises the most telling error.
    """
    tries = _Tries(call, experts, max_attempts, attempts)
    loop = asyncio.get_running_loop()
    while True:
        turn = tries.next()
        if turn is None:
            turn, pause = tries.later(deadline - loop.time())
            await asyncio.sleep(pause)
        tries.begin()
        after = turn.expert.health.ttft_p95 if hedge and call.stream else None
        if after is not None:
            if accepted := await _raced(tries, turn, after):
                return accepted
            continue
        try:
            return Accepted(turn.expert.name, await turn.ask())
        except (ExpertError, InvalidRequest) as error:
            tries.failed(turn, error)


class _Turn:
    """One ask to be made. The second one of an expert goes wherever it has least to do."""

    __slots__ = ("again", "call", "expert")

    def __init__(self, expert: Expert, call: Call, *, again: bool = False) -> None:
        self.expert = expert
        self.call = call
        self.again = again

    def ask(self) -> Coroutine[Any, Any, Reply]:
        return self.expert.stream(self.call)


class _Tries:
    """What was asked for one request, how it failed, and what comes next."""

    def __init__(self, call: Call, experts: Sequence[Expert], max_attempts: int, attempts: Attempts) -> None:
        self._call = call
        self._line = iter(experts)
        self._second: _Turn | None = None
        self._lone = len(experts) == 1
        self._away: frozenset[str] = frozenset()
        self._left = max_attempts
        self._asks = attempts
        self._pause = FIRST_PAUSE
        self._errors: list[ExpertError] = []
        self._unfit: InvalidRequest | None = None
        self._failures: list[tuple[_Turn, ExpertError]] = []  # those not yet waited for

    def next(self) -> _Turn | None:
        """The next ask, None when none is left to be made at once."""
        if not self._left:
            return None
        turn, self._second = self._second, None
        if turn is None:
            expert = next(self._line, None)
            call = replace(self._call, exclude=self._away) if self._away else self._call
            turn = _Turn(expert, call) if expert is not None else None
        return turn

    def company(self, turn: _Turn) -> _Turn | None:
        """Who is asked beside one that is slow: another replica of it, or else the next in line."""
        if self._left and not turn.again and turn.expert.health.ready_replicas > 1:
            return _again(turn, exclude=self._away)
        return self.next()

    def begin(self) -> None:
        """An ask is made."""
        self._left -= 1
        self._asks.begun += 1

    def failed(self, turn: _Turn, error: _Failure, *, pending: bool = False) -> None:
        """An ask failed, with an earlier one `pending`. Raises the error where asking on cannot help."""
        cause = "unsupported" if isinstance(error, InvalidRequest) else error.cause
        self._asks.causes.setdefault(turn.expert.name, cause)
        error.drop_frames()
        if isinstance(error, InvalidRequest) or not error.request_sent:
            self._left += 1
            self._asks.begun -= 1
        if isinstance(error, InvalidRequest):
            self._unfit = self._unfit or error
            return
        if not error.retryable and not self._errors and not pending:
            raise error
        self._errors.append(error)
        if error.retryable:
            self._passing(turn, error)

    def _passing(self, turn: _Turn, error: ExpertError) -> None:
        if isinstance(error, ExpertUnavailable):
            self._away |= error.unavailable_servers
        self._failures.append((turn, error))
        if not turn.again and turn.expert.health.ready_replicas > 1:
            self._second = _again(turn, exclude=self._away)

    def later(self, remaining: float) -> tuple[_Turn, float]:
        """Whom to ask again and after how many seconds. Raises the most telling error where nobody is worth it.

        Only who was really asked is waited for: else all requests to a server that is down or rests would gather here.
        """
        asked = [(turn, error) for turn, error in self._failures if error.request_sent]
        pauses = [
            (error.retry_after * random.uniform(1, 1.1) + SLACK, turn)  # noqa: S311
            for turn, error in asked
            if error.retry_after is not None and error.retry_after <= LONGEST_PAUSE
        ]
        if self._lone and asked and asked[0][1].retry_after is None and isinstance(asked[0][1], _PASSING):
            pauses = [(self._pause * random.uniform(0.5, 1.5), asked[0][0])]  # noqa: S311
            self._pause *= 2
        pause, turn = min(pauses, key=lambda one: one[0], default=(remaining, None))
        if turn is None or not self._left or pause >= remaining:
            raise self._verdict()
        self._failures = [failure for failure in self._failures if failure[0] is not turn]
        return _again(turn), pause

    def _verdict(self) -> _Failure:
        """What a client can act on rather than what it cannot; of the like the first, whose expert suited it best."""
        if not self._errors and self._unfit is not None:
            return self._unfit
        telling = min(self._errors, key=_how_telling)
        times = [error.retry_after for _, error in self._failures if error.retry_after is not None]
        telling.retry_after = min(times, default=None)
        return telling


def _again(turn: _Turn, *, exclude: frozenset[str] = frozenset()) -> _Turn:
    """With none left out after a pause: a server that could not be had may be back."""
    return _Turn(turn.expert, replace(turn.call, conversation=b"", exclude=exclude), again=True)


def _how_telling(error: ExpertError) -> tuple[bool, int]:
    rank = next((place for place, kind in enumerate(_TELLING) if isinstance(error, kind)), len(_TELLING))
    return not error.request_sent, rank


class _Race:
    """Up to two asks for one request. The first reply wins; one that comes later is closed by whoever got it."""

    def __init__(self) -> None:
        self.over = False
        self.won: tuple[_Turn, Reply] | None = None

    async def run(self, turn: _Turn) -> tuple[_Turn, _Failure] | None:
        """Ask, and keep or close the reply before anyone else runs; give back the error of an expert that failed."""
        try:
            reply = await turn.ask()
        except (ExpertError, InvalidRequest) as error:
            return turn, error
        if self.over:
            await reply.aclose()
        else:
            self.over, self.won = True, (turn, reply)
        return None


async def _raced(tries: _Tries, turn: _Turn, after: float) -> Accepted | None:
    """Ask, with company after so many seconds; None when all who were asked failed."""
    race = _Race()
    tasks = [asyncio.create_task(race.run(turn))]
    try:
        done, pending = await asyncio.wait(tasks, timeout=after)
        if pending and (second := tries.company(turn)) is not None:
            tries.begin()
            tasks.append(asyncio.create_task(race.run(second)))
            pending.add(tasks[-1])
        while race.won is None:
            for failure in (task.result() for task in tasks if task in done):
                if failure is not None:
                    tries.failed(*failure, pending=tasks[0] in pending)
            if not pending:
                return None
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        (winner, reply), race.won = race.won, None
        return Accepted(winner.expert.name, reply)
    finally:
        race.over = True
        for task in tasks:
            task.cancel()
        if race.won is not None:  # we were cancelled, or the other ask showed that no answer may be given
            await race.won[1].aclose()
