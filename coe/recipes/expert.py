"""`RecipeExpert`: calls the members of a recipe step by step, and returns the answer of one of them unchanged.

After each step a `RecipePolicy` compares the final answers and decides whether to continue. A member that fails counts
as no answer. The recipe stops early and returns its best answer so far, unverified, when a stream was held as long as
allowed, or the deadline is near. Members are the experts that single requests use, so their breakers, health and
residency apply.

Builds the arms of the declared recipes over the experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from coe.core import Call, Expert, Health, Reply
from coe.recipes.agreement import NO_ANSWER, answer_classes, grade_in, grading_fields
from coe.recipes.calls import Draft, FinalAnswer, MemberCalls, RecipeReply, health_of
from coe.recipes.final_answers import final_answer, json_form, without_reasoning
from coe.recipes.policy import RecipePolicy, default_policy
from coe.recipes.writing import WritingExpert
from coe.registry import Policy, Registry
from coe.registry.recipes import RecipeSpec
from coe.usage import MemberCall, RecipeStop


class RecipeExpert:
    """One arm of a cascade or vote.

    `members` holds its members by name, and the judge. `categories` is the number of categories of a posterior.
    """

    def __init__(
        self,
        name: str,
        members: Mapping[str, Expert],
        *,
        policy: RecipePolicy,
        categories: int,
        limits: Policy,
    ) -> None:
        self.name = name
        self.policy = policy
        self.members = {member: members[member] for member in policy.members}
        self.limits = limits
        self.uniform = np.full(categories, 1 / categories)
        self.judge = members[policy.judge] if policy.judge else None
        self._first = [members[member] for member in policy.steps[0].members]

    @property
    def health(self) -> Health:
        """Up while a member of the first step is up; its load is the largest of theirs."""
        return health_of(self._first)

    async def stream(self, call: Call) -> Reply:
        """Call the members until an answer is accepted. Raises the last member's error if none of them answered."""
        calls = MemberCalls(
            self.name,
            call,
            final_answer=_reader(call.fields),
            limits=self.limits,
            max_hold=self.limits.max_stream_hold if call.stream else math.inf,
        )
        judgements = 0 if self.judge is None else len(self.policy.steps) - 1
        most = len(self.policy.members) + judgements
        return await calls.returning(_Run(self, call, calls).reply, most=most)


class _Run:
    """One request of a recipe."""

    def __init__(self, recipe: RecipeExpert, call: Call, calls: MemberCalls) -> None:
        self._recipe = recipe
        self._call = replace(call, stand_in="", posterior=None, recipe_log=None)
        posterior = recipe.uniform if call.posterior is None else call.posterior.astype(np.float64)
        self._posterior = posterior[np.newaxis]
        self._calls = calls
        self._drafts = calls.drafts

    async def reply(self) -> RecipeReply:
        """Call the members and return the best answer. Raises the last error if no member answered."""
        stop = await self._call_steps()
        return self._calls.reply(self._best(finished_only=stop == "deadline"), stop)

    async def _call_steps(self) -> RecipeStop:
        """Call step after step until an answer is accepted or a limit is reached. Return why it stopped."""
        steps = self._recipe.policy.steps
        for number, step in enumerate(steps):
            if number and (stop := self._calls.due_stop()):
                return stop
            latest = [self._calls.start(self._recipe.members[name], number, self._call) for name in step.members]
            stop = await self._calls.settle(latest)
            continues = self._compare(number)
            if stop:
                return stop
            if number + 1 == len(steps):
                break
            if self._recipe.judge is not None:
                continues = await self._judged(number, continues, self._recipe.judge)
            if not continues and any(draft.usable for draft in self._drafts):
                return "accepted"
        return "last_step" if any(draft.complete for draft in latest) else "unavailable"

    async def _judged(self, number: int, continues: bool, judge: Expert) -> bool:
        """Have the best answer after step `number` graded, and return whether to continue.

        Without a grade, agreement has decided whether it `continues`.
        """
        calls, call = self._calls, self._call
        is_complete = any(draft.complete for draft in self._drafts)
        text = without_reasoning(self._best(finished_only=True).text() or "") if is_complete else ""
        if not text or calls.due_stop():  # there is no answer, or it was cut off or refused
            return continues
        timeout, optional = self._recipe.limits.response_timeout, frozenset(("max_tokens",))
        fields = grading_fields(call.fields, text)
        plain = replace(call, fields=fields, optional=optional, stream=False, first_token_timeout=timeout)
        grading = calls.start(judge, number, plain, reader=grade_in)
        await calls.settle([grading])
        if grading.answer is None:
            grading.log.outcome = "ungraded" if grading.complete else grading.log.outcome
            return continues
        grade, rule = float(grading.answer), self._recipe.policy.steps[number].graded
        grading.log.outcome = "graded"
        if rule is not None:
            grading.log.confidence = round(float(rule.probability(np.array(grade))), 4)
        return self._compare(number, grade)

    def _compare(self, number: int, grade: float = math.nan) -> bool:
        """Rate all answers after step `number` and return whether to continue; `grade` is a judge's of the best one.

        An answer that has begun and is not complete counts as different from all others.
        """
        unfinished = [draft.usable and not draft.complete for draft in self._drafts]
        answers = [
            f"\0{index}" if is_unfinished else draft.answer
            for index, (draft, is_unfinished) in enumerate(zip(self._drafts, unfinished, strict=True))
        ]
        classes = answer_classes(answers)
        typical = np.expm1(self._recipe.policy.steps[number].typical)
        counted = [_output_tokens(draft.log) for draft in self._drafts]
        tokens = np.array([usual if count is None else count for count, usual in zip(counted, typical, strict=True)])
        probabilities, continues = self._recipe.policy.evaluate(
            number, classes[np.newaxis], tokens[np.newaxis], self._posterior, np.array([grade])
        )
        for draft, answer_class, is_unfinished in zip(self._drafts, classes.tolist(), unfinished, strict=True):
            if answer_class != NO_ANSWER:
                draft.log.confidence = round(float(probabilities[0, answer_class]), 4)
                first = self._calls.log.calls.index(self._drafts[answer_class].log)
                draft.log.answer_class = None if is_unfinished else first
        return bool(continues[0])

    def _best(self, *, finished_only: bool) -> Draft:
        """Return the answer that is most likely right; if none can be compared, the first complete one of the latest
        step, or else a stream of it that has begun.

        With `finished_only`, a stream that has only begun is not returned if another answer is complete. Raises the
        last error if there is no answer.
        """
        usable = [draft for draft in self._drafts if draft.usable]
        if not usable:
            raise self._calls.last_error()
        if finished_only:
            usable = [draft for draft in usable if draft.complete] or usable
        last = [draft for draft in usable if draft.log.step + 1 == len(self._recipe.policy.steps)]
        if self._recipe.judge is not None and last and all(draft.answer is None for draft in last):
            return max(last, key=lambda draft: draft.complete)  # the judge has rejected the others
        best = max(usable, key=lambda draft: draft.log.confidence or 0.0)
        if best.log.confidence and any(draft.answer is not None for draft in usable):
            return best
        # only streams that have begun have a probability, each as the one answer that differs from all others
        return max(usable, key=lambda draft: (draft.log.step, draft.complete, draft.log.confidence or 0.0))


def _reader(fields: Mapping[str, Any]) -> FinalAnswer:
    """Return the reader of final answers. If a request demands JSON, an answer counts only if it is JSON."""
    form = fields.get("response_format")
    is_json = isinstance(form, dict) and form.get("type") in ("json_object", "json_schema")
    return json_form if is_json else final_answer


def _output_tokens(call: MemberCall) -> float | None:
    """Return the tokens of an answer; if they were not counted, the events of its stream; None without any."""
    usage = call.usage
    if usage is None:
        return None
    return float(usage.output_tokens or usage.events) or None


def build_recipes(
    registry: Registry,
    experts: Mapping[str, Expert],
    *,
    categories: int,
    policies: Mapping[str, RecipePolicy] | None = None,
) -> dict[str, RecipeExpert | WritingExpert]:
    """Return every arm of the declared recipes by name, over `experts`.

    `policies` are the fitted policies by arm, over posteriors of `categories` categories; an arm without one gets the
    default policy of its recipe.
    """
    fitted = policies or {}
    arms: dict[str, RecipeExpert | WritingExpert] = {}
    for recipe in registry.declared_recipes:
        if recipe.writes:
            arms[recipe.name] = writing_expert(registry, recipe, experts)
            continue
        arms[recipe.name] = RecipeExpert(
            recipe.name,
            experts,
            policy=fitted.get(recipe.name) or default_policy(recipe, categories=categories),
            categories=categories,
            limits=registry.policy,
        )
    return arms


def writing_expert(registry: Registry, recipe: RecipeSpec, experts: Mapping[str, Expert]) -> WritingExpert:
    """Return the arm of a chain or fuse over `experts`, which has at least its members."""
    declared = {name: registry.expert(name) for name in recipe.members}
    return WritingExpert(recipe, experts, declared=declared, limits=registry.policy)
