"""`Audit`: calls the members that a recipe left out because it accepted an answer early, and compares the answers.

The client has its answer already. The members have the caps that they would have had. The recipe's own policy judges
all answers as it would have after the last step; the audit finds whether another answer would have been returned.
`gateway.request.audits` decides which audits run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np

from coe.core import Call, Expert
from coe.errors import ExpertAsleep, ExpertError, InvalidRequest
from coe.experts.recipes.agreement import NO_ANSWER, Array, answer_classes, best_answer
from coe.experts.recipes.calls import capped_call
from coe.experts.recipes.draft import MAX_HELD_BYTES, Draft, FinalAnswer, HeldBytes
from coe.experts.recipes.policy import RecipePolicy
from coe.usage import AuditResult, MemberCall


class Audit:
    """One audit of an accepted answer; implements `coe.usage.RecipeAudit`.

    `answers` are the final answers of the members that were called, in the order of `policy.members`, and `accepted` is
    the position of the returned one. With `caps_apply`, the members have the caps of the policy.
    `posterior` has shape (1, n_categories). `call` is the client's request.
    """

    def __init__(
        self,
        policy: RecipePolicy,
        members: Mapping[str, Expert],
        call: Call,
        *,
        answers: Sequence[str | None],
        accepted: int,
        posterior: Array,
        final_answer: FinalAnswer,
        caps_apply: bool,
    ) -> None:
        self.calls: list[MemberCall] = []
        self._policy = policy
        self._answers = tuple(answers)
        self._accepted = accepted
        self._posterior = posterior
        self._final_answer = final_answer
        caps = policy.caps if caps_apply else np.full(len(policy.members), np.inf)
        steps = [number for number, step in enumerate(policy.steps) for _ in step.members]
        calls = list(zip(policy.members, steps, caps.tolist(), strict=True))[len(answers) :]
        self._remaining = [(members[name], step, cap) for name, step, cap in calls]
        self._call: Call | None = call

    @property
    def readable(self) -> bool:
        """True if the accepted answer can be compared: free text, for example, differs from any other answer."""
        return self._answers[self._accepted] is not None

    @property
    def available(self) -> bool:
        """True if every member that it calls is up and not overloaded."""
        return all(member.health.up and member.health.load < 1 for member, *_ in self._remaining)

    async def run(self) -> AuditResult:
        """Call the remaining members at the same time. Return whether another answer would have been returned."""
        call, self._call = self._call, None
        assert call is not None
        held = HeldBytes(MAX_HELD_BYTES)
        drafts = [self._draft(*one, call, held) for one in self._remaining]
        del call  # the drafts have it
        await asyncio.gather(*(draft.read() for draft in drafts))
        for draft in drafts:
            if draft.error is not None and not isinstance(draft.error, ExpertError | InvalidRequest):
                raise draft.error
        last = len(self._policy.steps[-1].members)
        if not any(draft.complete for draft in drafts[-last:]):
            asleep = all(isinstance(draft.error, ExpertAsleep) for draft in drafts[-last:])
            return "skipped_unavailable" if asleep else "failed"
        differs = self._differs((*self._answers, *(draft.answer for draft in drafts)), last)
        return "differed" if differs else "agreed"

    def _draft(self, member: Expert, step: int, max_tokens: float, call: Call, held: HeldBytes) -> Draft:
        log = MemberCall(member.name, step)
        self.calls.append(log)
        call, cap = capped_call(call, max_tokens)
        return Draft(member, call, log, held=held, final_answer=self._final_answer, cap=cap)

    def _differs(self, answers: Sequence[str | None], last: int) -> bool:
        """Return whether the policy returns another answer than the accepted one after its last step."""
        policy, classes = self._policy, answer_classes(answers)
        tokens = np.expm1(policy.steps[-1].typical)[np.newaxis]  # they matter to whether a policy continues only
        probabilities, _ = policy.evaluate(len(policy.steps) - 1, classes[np.newaxis], tokens, self._posterior)
        returned = int(best_answer(probabilities, otherwise=len(answers) - last)[0])
        return not is_same_answer(classes, returned, self._accepted)


def is_same_answer(classes: Sequence[int] | np.ndarray, one: int, other: int) -> bool:
    """Return whether two members gave the same final answer; unreadable answers of different members differ."""
    return one == other or bool(classes[one] == classes[other] != NO_ANSWER)
