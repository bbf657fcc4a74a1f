"""`WritingExpert`: a chain or fuse, whose last step writes the answer from the answers of earlier steps.

Members of all steps but the last answer in full, without streaming. The last member's answer goes to the client
unchanged, from its first byte. A member that fails leaves its answer out. If the last one fails before its first byte,
or the deadline is near, the latest finished draft is returned, unverified. Members are the experts that single requests
use, so their breakers, health and residency apply.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from coe.core import Call, Expert, Health, Reply
from coe.recipes.calls import MemberCalls, RecipeReply
from coe.recipes.draft import Draft
from coe.recipes.final_answers.answers import without_reasoning
from coe.recipes.writing.request import constrains_format, inner_fields, with_drafts
from coe.registry import ExpertSpec, Policy
from coe.registry.recipes import RecipeSpec
from coe.usage import RecipeStop


class WritingExpert:
    """The arm of a chain or fuse. `members` are the experts by name, `declared` their declarations."""

    def __init__(
        self, recipe: RecipeSpec, members: Mapping[str, Expert], *, declared: Mapping[str, ExpertSpec], limits: Policy
    ) -> None:
        self.name = recipe.name
        self.recipe = recipe
        self.members = {name: members[name] for name in recipe.members}
        self.declared = {name: declared[name] for name in recipe.members}
        self.limits = limits
        self._first = [members[name] for name in recipe.steps[0]]
        self._last = members[recipe.members[-1]]

    @property
    def health(self) -> Health:
        """Up while the last member and one of the first step are; its load is the largest of theirs."""
        first, last = [member.health for member in self._first], self._last.health
        up = last.up and any(one.up for one in first)
        cause = first[0].cause if last.up else last.cause
        return Health(up, max(last.load, *(one.load for one in first)), cause="" if up else cause)

    async def stream(self, call: Call) -> Reply:
        """Call the steps and return the answer of the last one. Raises an ExpertError if there is none to return."""
        returns_drafts = not constrains_format(call.fields)
        calls = MemberCalls(
            self.name,
            call if returns_drafts else replace(call, deadline=math.inf),
            members=self.members,
            final_answer=draft_text,
            limits=self.limits,
        )
        run = _Run(self, call, calls, returns_drafts=returns_drafts)
        return await calls.returning(run.reply, first=len(self._first))


class _Run:
    """One request of a chain or fuse."""

    def __init__(self, expert: WritingExpert, call: Call, calls: MemberCalls, *, returns_drafts: bool) -> None:
        self._expert = expert
        self._call: Call | None = replace(call, stand_in="", posterior=None, recipe_log=None)
        """None once the last member is called, as its body may be large."""
        self._streams = call.stream
        self._shows_usage = bool((call.fields.get("stream_options") or {}).get("include_usage"))
        self._calls = calls
        self._returns_drafts = returns_drafts

    async def reply(self) -> RecipeReply:
        """Call step after step. Raises the last error if there is no answer to return."""
        *inner, (last,) = self._expert.recipe.steps
        for number, names in enumerate(inner):
            if number and (stop := self._calls.stop_before(len(names))):
                return self._draft(stop)
            latest = [self._start(name, number) for name in names]
            stop = await self._calls.settle(latest)
            self._calls.raise_defect()
            if stop:
                return self._draft(stop)
        if stop := self._calls.stop_before(1):
            return self._draft(stop)
        written = self._start(last, len(inner))
        self._call = None
        stop = await self._calls.wait(lambda: written.usable or written.settled)
        self._calls.raise_defect()
        if not written.usable:
            return self._draft(stop or "unavailable")
        if written.complete:
            written.log.outcome = "answered"  # nothing compares it
        return self._calls.reply(written, "last_step")

    def _start(self, name: str, number: int) -> Draft:
        """Call a member of a step with the answers of the latest earlier step that has any."""
        call, recipe = self._call, self._expert.recipe
        assert call is not None
        is_last = number + 1 == len(recipe.steps)
        answered = [draft for draft in self._calls.drafts if draft.answer is not None and draft.log.step < number]
        latest = max((draft.log.step for draft in answered), default=-1)
        fields, count = with_drafts(
            call.fields if is_last else inner_fields(call.fields),
            [draft.answer for draft in answered if draft.answer is not None and draft.log.step == latest],
            label="draft" if recipe.chain else "answer",
            instruction=recipe.written_instruction,
            member=self._expert.declared[name],
        )
        if is_last:
            return self._calls.start(name, number, replace(call, fields=fields), drafts=count)
        timeout = self._expert.limits.response_timeout
        plain = replace(call, fields=fields, stream=False, first_token_timeout=timeout)
        return self._calls.start(name, number, plain, drafts=count)

    def _draft(self, stop: RecipeStop) -> RecipeReply:
        """Return the latest complete draft, one with readable text before others. Raises the last error without one."""
        complete = [draft for draft in self._calls.drafts if draft.complete]
        best = max(complete, key=lambda draft: (draft.answer is not None, draft.log.step), default=None)
        if (
            best is None
            or not self._returns_drafts
            or (self._streams and not best.to_stream(with_usage=self._shows_usage))
        ):
            raise self._calls.last_error()
        return self._calls.reply(best, stop)


def draft_text(text: str) -> str | None:
    """Return the text of an answer as the next step gets it: without its reasoning; None if nothing is left."""
    return without_reasoning(text) or None
