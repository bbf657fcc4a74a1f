"""`RecipeExpert`: calls the members of a recipe step by step, and returns the answer of one of them unchanged.

After each step a `RecipePolicy` compares the final answers and decides whether to go on. A member that fails counts as
no answer. The recipe stops early and returns its best answer so far, unverified, when a stream was held as long as
allowed, too many bytes are held, or the deadline is near. Members are the experts that single requests use, so their
breakers, health and residency apply.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace

import numpy as np

from coe.core import Call, Expert, Health, MemberCall, RecipeLog, RecipeStop, RecipeUsage, Reply, Usage
from coe.errors import ExpertError, ExpertUnavailable, InvalidRequest
from coe.experts.recipes.agreement import NO_ANSWER, answer_classes
from coe.experts.recipes.audit import Audit
from coe.experts.recipes.draft import MAX_HELD_BYTES, Draft, FinalAnswer, HeldBytes
from coe.experts.recipes.policy import RecipePolicy
from coe.registry import Policy

DEADLINE_MARGIN_SECONDS = 0.5
"""Time before the request's deadline at which the best answer so far is returned."""
DEADLINE_MARGIN_SHARE = 0.1
"""The margin is at most this share of the time that the request has left when it reaches the recipe."""
_VERIFIED: tuple[RecipeStop, ...] = ("accepted", "last_step")


class RecipeExpert:
    """One arm of a recipe.

    `members` holds its members by name. `categories` is the number of categories of a posterior. With probability
    `audit_rate` an answer is marked for an audit; `draw` returns a uniform number from [0, 1).
    """

    def __init__(
        self,
        name: str,
        members: Mapping[str, Expert],
        *,
        policy: RecipePolicy,
        categories: int,
        final_answer: FinalAnswer,
        limits: Policy,
        audit_rate: float = 0.0,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.policy = policy
        self.members = {member: members[member] for member in policy.members}
        self.final_answer = final_answer
        self.limits = limits
        self.audit_rate = audit_rate
        self.draw = draw
        self.uniform = np.full(categories, 1 / categories)
        self._first = [members[member] for member in policy.steps[0].members]

    @property
    def health(self) -> Health:
        """Up while a member of the first step is up; its load is the largest of theirs. A recipe is never hedged."""
        first = [member.health for member in self._first]
        up = any(one.up for one in first)
        return Health(up, max(one.load for one in first), cause="" if up else first[0].cause)

    async def stream(self, call: Call) -> Reply:
        """Call the members until an answer is accepted. Raises the last member's error if none of them answered."""
        log = call.recipe_log or RecipeLog()
        log.recipe, log.stop = self.policy.recipe, ""
        log.audit_rate, log.audited, log.audit = 0.0, False, None
        if len(log.calls) + len(self._first) > self.limits.max_calls:
            log.stop = "failed"
            raise self._calls_used_up()
        run = _Run(self, call, log)
        try:
            return await run.reply()
        except BaseException as error:
            log.stop = "failed" if isinstance(error, ExpertError | InvalidRequest) else "cancelled"
            await run.aclose()
            raise

    async def aclose(self) -> None:
        """Does nothing: the members belong to others."""

    def _calls_used_up(self) -> ExpertError:
        limit = self.limits.max_calls
        error = ExpertUnavailable(f"recipe {self.policy.recipe!r} has made all {limit} calls it may", expert=self.name)
        error.request_sent = False
        return error


class _Run:
    """One request of a recipe: its drafts in the order of the calls."""

    def __init__(self, recipe: RecipeExpert, call: Call, log: RecipeLog) -> None:
        self._recipe = recipe
        self._call: Call | None = replace(call, stand_in="", posterior=None, recipe_log=None)
        """The call that the members get; None once no further member is called, as its body may be large."""
        self._is_stream = call.stream
        posterior = recipe.uniform if call.posterior is None else call.posterior.astype(np.float64)
        self._posterior = posterior[np.newaxis]
        self.log = log
        self._first_call = len(log.calls)
        self._drafts: list[Draft] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._held = HeldBytes(MAX_HELD_BYTES)
        self._clock = asyncio.get_running_loop().time
        left = call.deadline - self._clock()
        self._stop_at = call.deadline - min(DEADLINE_MARGIN_SECONDS, DEADLINE_MARGIN_SHARE * left)

    async def reply(self) -> Reply:
        """Call the members and return the best answer. Raises the last error if no member answered."""
        stop = await self._call_steps()
        call, self._call = self._call, None
        best = self._best(finished_only=stop == "deadline")
        self.log.stop, best.log.accepted = stop, True
        if stop not in _VERIFIED:
            best.log.outcome = "unverified"
        elif self._recipe.audit_rate:
            self._draw_audit(call, best)
        for draft, task in zip(self._drafts, self._tasks, strict=True):
            if draft is not best and not draft.complete:
                task.cancel()
        return RecipeReply(self, best)

    def _draw_audit(self, call: Call | None, best: Draft) -> None:
        """Mark the answer for an audit, or not. The draw does not depend on the request."""
        recipe, log = self._recipe, self.log
        log.audit_rate = recipe.audit_rate
        log.audited = recipe.draw() < recipe.audit_rate
        if log.audited and log.stop == "accepted" and call is not None:
            answers = tuple(draft.answer for draft in self._drafts)
            log.audit = Audit(
                recipe.policy,
                recipe.members,
                replace(call, wake_deadline=0.0, deadline=math.inf),
                answers=answers,
                accepted=self._drafts.index(best),
                posterior=self._posterior,
                final_answer=recipe.final_answer,
            )

    async def _call_steps(self) -> RecipeStop:
        """Call step after step until an answer is accepted or a limit is reached. Return why it stopped."""
        steps = self._recipe.policy.steps
        for number, step in enumerate(steps):
            if number and (stop := self._stop_before(len(step.members))):
                return stop
            self._start(number, step.members)
            stop = await self._settle(self._drafts[-len(step.members) :])
            goes_on = self._compare(number)
            if stop:
                return stop
            is_last = number + 1 == len(steps)
            if not is_last and not goes_on and any(draft.usable for draft in self._drafts):
                return "accepted"
        return "last_step" if any(draft.complete for draft in self._drafts[-len(step.members) :]) else "unavailable"

    def _start(self, number: int, members: Sequence[str]) -> None:
        """Call the members of a step at the same time."""
        assert self._call is not None
        for name in members:
            log = MemberCall(name, number)
            self.log.calls.append(log)
            member, final_answer = self._recipe.members[name], self._recipe.final_answer
            self._drafts.append(Draft(member, self._call, log, held=self._held, final_answer=final_answer))
            self._tasks.append(asyncio.create_task(self._drafts[-1].read()))

    async def _settle(self, drafts: Sequence[Draft]) -> RecipeStop:
        """Wait until all drafts are complete or have failed. Return why to stop before that, empty if they did."""
        changed = self._held.changed
        while not all(draft.settled for draft in drafts):
            at, stop = self._limit()
            if self._clock() >= at:
                return stop
            with suppress(TimeoutError):
                async with asyncio.timeout_at(at if math.isfinite(at) else None):
                    await changed.wait()
            changed.clear()
        return ""

    def _limit(self) -> tuple[float, RecipeStop]:
        """Return when (event loop clock) and why to stop. Without an answer to return there is no limit here."""
        begun = [draft.began for draft in self._drafts if draft.usable and draft.began is not None]
        if not begun:
            return math.inf, "deadline"
        if self._held.full:
            return -math.inf, "held_bytes"
        held_until = min(begun) + self._recipe.limits.max_stream_hold if self._is_stream else math.inf
        return (held_until, "stream_hold") if held_until < self._stop_at else (self._stop_at, "deadline")

    def _stop_before(self, calls: int) -> RecipeStop:
        """Return why not to begin a step of so many calls; empty if it may begin."""
        if len(self.log.calls) + calls > self._recipe.limits.max_calls:
            return "unavailable"
        at, stop = self._limit()
        return stop if self._clock() >= at else ""

    def _compare(self, number: int) -> bool:
        """Rate all answers after step `number` and return whether to go on.

        An answer that has begun and is not complete counts as different from all others.
        """
        for draft in self._drafts:
            if draft.error is not None and not isinstance(draft.error, ExpertError | InvalidRequest):
                raise draft.error
        unfinished = [draft.usable and not draft.complete for draft in self._drafts]
        answers = [
            f"\0{index}" if is_unfinished else draft.answer
            for index, (draft, is_unfinished) in enumerate(zip(self._drafts, unfinished, strict=True))
        ]
        classes = answer_classes(answers)
        typical = np.expm1(self._recipe.policy.steps[number].typical)
        counted = [_output_tokens(draft.log) for draft in self._drafts]
        tokens = np.array([usual if count is None else count for count, usual in zip(counted, typical, strict=True)])
        probabilities, goes_on = self._recipe.policy.judge(
            number, classes[np.newaxis], tokens[np.newaxis], self._posterior
        )
        for draft, answer_class, is_unfinished in zip(self._drafts, classes.tolist(), unfinished, strict=True):
            if answer_class != NO_ANSWER:
                draft.log.confidence = round(float(probabilities[0, answer_class]), 4)
                draft.log.answer_class = None if is_unfinished else self._first_call + answer_class
        return bool(goes_on[0])

    def _best(self, *, finished_only: bool) -> Draft:
        """Return the answer that is most likely right; if none can be compared, the first one of the latest step.

        With `finished_only`, a stream that has only begun is not returned if another answer is complete. Raises the
        last error if there is no answer.
        """
        usable = [draft for draft in self._drafts if draft.usable]
        if not usable:
            raise self._last_error()
        if finished_only:
            usable = [draft for draft in usable if draft.complete] or usable
        best = max(usable, key=lambda draft: draft.log.confidence or 0.0)
        return best if best.log.confidence else max(usable, key=lambda draft: draft.log.step)

    def _last_error(self) -> Exception:
        errors = [draft.error for draft in self._drafts if draft.error is not None]
        error = errors[-1] if errors else ExpertUnavailable("all calls were cancelled", expert=self._recipe.name)
        if isinstance(error, ExpertError):
            error.expert = self._recipe.name
        return error

    async def aclose(self) -> None:
        """Cancel all calls that are not complete, and wait until every connection is closed."""
        for draft, task in zip(self._drafts, self._tasks, strict=True):
            if not draft.complete:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class RecipeReply:
    """The answer of one member, unchanged. Its usage is the sum over all calls."""

    def __init__(self, run: _Run, draft: Draft) -> None:
        self.media_type = draft.media_type
        self.usage: Usage
        self.usage = self._total = RecipeUsage(run.log)
        self._run = run
        self._draft = draft

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(self._draft.relay()) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._total.refresh()

    async def aclose(self) -> None:
        await self._run.aclose()
        self._total.refresh()


def _output_tokens(call: MemberCall) -> float | None:
    """Return the tokens of an answer; if they were not counted, the events of its stream; None without any."""
    usage = call.usage
    if usage is None:
        return None
    return float(usage.output_tokens or usage.events) or None
