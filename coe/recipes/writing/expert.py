"""`WritingExpert`: a chain or fuse, whose last step writes the answer from the answers of earlier steps.

Members of all steps but the last answer in full, without streaming. The last member's answer goes to the client
unchanged, from its first byte. An earlier member that fails leaves its answer out; if the last one fails, the recipe
fails like an expert. Members are the experts that single requests use, so their breakers, health and residency apply.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from coe.core import Call, Expert, Health, Reply
from coe.recipes.calls import MemberCalls, RecipeReply, health_of
from coe.recipes.draft import Draft
from coe.recipes.final_answers.answers import without_reasoning
from coe.recipes.writing.request import inner_fields, with_drafts
from coe.registry import ExpertSpec, Policy
from coe.registry.recipes import RecipeSpec


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

    @property
    def health(self) -> Health:
        """Up while the last member and one of the first step are; its load is the largest of theirs."""
        return health_of([self.members[name] for name in self.recipe.steps[0]], self.members[self.recipe.members[-1]])

    async def stream(self, call: Call) -> Reply:
        """Call the steps and return the answer of the last one. Raises its error if it does not answer."""
        calls = MemberCalls(
            self.name,
            replace(call, deadline=math.inf),  # the last member has it
            final_answer=_draft_text,
            limits=self.limits,
        )
        return await calls.returning(lambda: self._reply(call, calls), most=len(self.recipe.members))

    async def _reply(self, call: Call, calls: MemberCalls) -> RecipeReply:
        """Call step after step, each with the answers of the latest earlier one that has any."""
        *inner, (last,) = self.recipe.steps
        answers: list[str] = []
        for number, names in enumerate(inner):
            drafts = [self._start(call, calls, name, number, answers) for name in names]
            await calls.settle(drafts)
            answers = [draft.answer for draft in drafts if draft.answer is not None] or answers
        written = self._start(call, calls, last, len(inner), answers)
        await calls.wait(lambda: written.usable or written.settled)
        if not written.usable:
            raise calls.last_error()
        if written.complete:
            written.log.outcome = "answered"  # nothing compares it
        return calls.reply(written, "last_step")

    def _start(self, call: Call, calls: MemberCalls, name: str, number: int, answers: Sequence[str]) -> Draft:
        """Call a member with earlier answers, in full unless it is of the last step."""
        is_last = number + 1 == len(self.recipe.steps)
        fields, count = with_drafts(
            call.fields if is_last else inner_fields(call.fields),
            answers,
            label="draft" if self.recipe.chain else "answer",
            instruction=self.recipe.written_instruction,
            member=self.declared[name],
        )
        asked = replace(call, fields=fields, stand_in="", posterior=None, recipe_log=None)
        if not is_last:
            asked = replace(asked, stream=False, first_token_timeout=self.limits.response_timeout)
        draft = calls.start(self.members[name], number, asked)
        draft.log.drafts = count
        return draft


def _draft_text(text: str) -> str | None:
    """Return the text of an answer as the next step gets it: without its reasoning; None if nothing is left."""
    return without_reasoning(text) or None
