"""`MemberCalls`: the calls of one request of a recipe, and `RecipeReply`, the answer of one of them, unchanged.

It starts calls, waits for them within the limits of the request, and cancels what is left. `RecipeExpert` and
`WritingExpert` decide what to call and which answer to return.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress

from coe.core import Call, Expert, Health
from coe.errors import ExpertError, ExpertUnavailable, InvalidRequest
from coe.recipes.draft import Draft, FinalAnswer, HeldBytes
from coe.registry import Policy
from coe.usage import MemberCall, RecipeLog, RecipeStop, RecipeUsage, Usage

DEADLINE_MARGIN_SECONDS = 0.5
"""Time before the request's deadline at which the best answer so far is returned."""
DEADLINE_MARGIN_SHARE = 0.1
"""The margin is at most this share of the time that the request has left when it reaches the recipe."""
VERIFIED: tuple[RecipeStop, ...] = ("accepted", "last_step")
"""The reason why a recipe stopped, if its answer was compared with all others."""


class MemberCalls:
    """The drafts of one request of a recipe, in the order of the calls.

    A stream is held back for at most `max_hold` seconds after the first token.
    """

    def __init__(
        self,
        recipe: str,
        call: Call,
        *,
        final_answer: FinalAnswer,
        limits: Policy,
        max_hold: float = math.inf,
    ) -> None:
        self.log = call.recipe_log or RecipeLog()
        self.log.recipe, self.log.stop = recipe, ""
        self.drafts: list[Draft] = []
        self._final_answer = final_answer
        self._max_calls = limits.max_calls
        self._max_hold = max_hold
        self._running: list[tuple[Draft, asyncio.Task[None]]] = []
        self._held = HeldBytes(call.memory)
        self._clock = asyncio.get_running_loop().time
        left = call.deadline - self._clock()
        self._stop_at = call.deadline - min(DEADLINE_MARGIN_SECONDS, DEADLINE_MARGIN_SHARE * left)

    async def returning(self, reply: Callable[[], Awaitable[RecipeReply]], *, most: int) -> RecipeReply:
        """Return the result of `reply`, which makes `most` calls at most. If it raises, cancel all calls.

        Raises ExpertUnavailable if so many more than those of earlier attempts exceed `policy.max_calls`.
        """
        try:
            if len(self.log.calls) + most > self._max_calls:
                message = (
                    f"recipe {self.log.recipe!r} has no {most} of the {self._max_calls} calls left that it may make"
                )
                used_up = ExpertUnavailable(message, expert=self.log.recipe)
                used_up.request_sent = False
                raise used_up
            return await reply()
        except BaseException as error:
            self.log.stop = "failed" if isinstance(error, ExpertError | InvalidRequest) else "cancelled"
            await self.aclose()
            raise

    def start(self, expert: Expert, number: int, call: Call, *, reader: FinalAnswer | None = None) -> Draft:
        """Call an expert in step `number`. An answer with a `reader` of its own is not returned, such as a judge's."""
        log = MemberCall(expert.name, number)
        self.log.calls.append(log)
        draft = Draft(expert, log, held=self._held, final_answer=reader or self._final_answer)
        if reader is None:
            self.drafts.append(draft)
        self._running.append((draft, asyncio.create_task(draft.read(call))))
        return draft

    async def settle(self, drafts: Sequence[Draft]) -> RecipeStop:
        """Wait until all these drafts are complete or have failed. Return why to stop before that, empty if they
        are."""
        return await self.wait(lambda: all(draft.settled for draft in drafts))

    async def wait(self, done: Callable[[], bool]) -> RecipeStop:
        """Wait until `done`. Return why to stop before that, empty if it is. Raises the error of a draft that is a bug,
        not a failure of its expert."""
        changed = self._held.changed
        while not (is_done := done()) and not self.due_stop():
            at, _ = self._limit()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(at if math.isfinite(at) else None):
                    await changed.wait()
            changed.clear()
        for draft, _ in self._running:
            if draft.error is not None and not isinstance(draft.error, ExpertError | InvalidRequest):
                raise draft.error
        return "" if is_done else self.due_stop()

    def _limit(self) -> tuple[float, RecipeStop]:
        """Return the time (event loop clock) and reason to stop. Infinity while there is no answer to return."""
        begun = [draft.began for draft in self.drafts if draft.usable and draft.began is not None]
        if not begun:
            return math.inf, "deadline"
        held_until = min(begun) + self._max_hold
        return (held_until, "stream_hold") if held_until < self._stop_at else (self._stop_at, "deadline")

    def due_stop(self) -> RecipeStop:
        """Return the reason not to make a further call; empty if there is none."""
        at, stop = self._limit()
        return stop if self._clock() >= at else ""

    def last_error(self) -> Exception:
        """Return the error of the last call that failed, as an error of this recipe."""
        errors = [draft.error for draft in self.drafts if draft.error is not None]
        error = errors[-1] if errors else ExpertUnavailable("all calls were cancelled", expert=self.log.recipe)
        if isinstance(error, ExpertError):
            error.expert = self.log.recipe
        return error

    def reply(self, best: Draft, stop: RecipeStop) -> RecipeReply:
        """Return this draft, discard the others, and cancel the calls that are not complete."""
        self.log.stop, best.log.accepted = stop, True
        if stop not in VERIFIED:
            best.log.outcome = "unverified"
        for draft, task in self._running:
            if draft is not best and not draft.complete:
                task.cancel()
            elif draft is not best:
                draft.discard()
        return RecipeReply(self, best)

    async def aclose(self) -> None:
        """Cancel all calls that are not complete, wait until every connection is closed, and drop what is held."""
        for draft, task in self._running:
            if not draft.complete:
                task.cancel()
        await asyncio.gather(*(task for _, task in self._running), return_exceptions=True)
        for draft, _ in self._running:
            draft.discard()


def health_of(first: Sequence[Expert], *needed: Expert) -> Health:
    """Return the health of a recipe: up while one of its `first` members and all `needed` ones are; its load is the
    largest of theirs."""
    some, every = [one.health for one in first], [one.health for one in needed]
    failed = [one for one in every if not one.up] or ([] if any(one.up for one in some) else some)
    load = max(one.load for one in (*some, *every))
    return Health(not failed, load, cause=failed[0].cause if failed else "")


class RecipeReply:
    """The answer of one member, unchanged. Its usage is the sum over all calls."""

    def __init__(self, calls: MemberCalls, draft: Draft) -> None:
        self.media_type = draft.media_type
        self.usage: Usage
        self.usage = self._total = RecipeUsage(calls.log)
        self._calls = calls
        self._draft = draft

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(self._draft.relay()) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._total.refresh()

    async def aclose(self) -> None:
        await self._calls.aclose()
        self._total.refresh()
