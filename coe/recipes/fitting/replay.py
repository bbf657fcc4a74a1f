"""Replays policies on recorded answers, and estimates what the arms of recipes use by category.

`AnswerTable` has the recorded answers and what each cost; `Replay` runs policies on them. `columns` builds the columns
of a plan from both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coe.measuring.quality import Quality, filled
from coe.measuring.recorded_answers import RecordedAnswers
from coe.planning import Uses
from coe.planning.uses import ASSUMED_INPUT_TOKENS, ASSUMED_OUTPUT_TOKENS
from coe.recipes.agreement import Array
from coe.recipes.fitting.answers import Answers
from coe.recipes.fitting.arms import DECLARED_PRICE, SAFER_PRICE, Arm, cost_by_category, declared_arms
from coe.recipes.fitting.fit import loss_of_stopping, replayed
from coe.recipes.fitting.judged import Judgements, JudgeUse
from coe.recipes.fitting.max_loss import accepted_thresholds
from coe.recipes.policy import RecipePolicy, member_columns
from coe.registry import ExpertSpec, Registry
from coe.registry.recipes import RecipeSpec


@dataclass(frozen=True, slots=True, eq=False)
class AnswerTable:
    """Recorded answers of the planned experts, and what each answer cost in the plan's units.

    `cells` are the rows and columns of the quality data that they cover. `output_dollars` is the part of the dollars
    that is paid for output. An answer that a cap ends takes its share of `latency_ms`.
    """

    answers: Answers
    prompts: list[int]
    cells: tuple[NDArray[np.int64], ...]
    active_b: Array
    dollars: Array
    output_dollars: Array
    latency_ms: Array

    @classmethod
    def of(
        cls,
        registry: Registry,
        data: Quality,
        recorded: RecordedAnswers,
        prompts: list[int],
        experts: Sequence[str],
        categories: Sequence[str],
    ) -> AnswerTable:
        specs = [registry.expert(name) for name in experts]
        cells = data.grid(prompts, experts)
        tokens, shape = recorded.tokens[cells], (len(prompts), len(experts))
        unknown = np.full(data.scores.shape, np.nan)
        given, written = _priced_tokens(data.uses.get("input_tokens", unknown)[cells], tokens)
        output_dollars = written * _prices(specs, "output") / 1000
        dollars = given * _prices(specs, "input") / 1000 + output_dollars
        sizes = np.array([spec.active_parameters_b for spec in specs], dtype=np.float64)  # NaN for None
        by_tokens = tokens / 1000 * (sizes if np.isfinite(sizes).all() else 1.0)
        answers = Answers(
            tuple(experts),
            recorded.classes[cells],
            data.scores[cells],
            dollars if dollars.any() else by_tokens,
            tokens,
            data.labels(prompts, categories),
            len(categories),
            output_dollars if dollars.any() else by_tokens,
        )
        declared = np.array([spec.latency_ms for spec in specs], dtype=np.float64)
        latency = filled(data.uses.get("latency_ms", unknown)[cells], declared)
        return cls(answers, prompts, cells, np.broadcast_to(sizes, shape), dollars, output_dollars, latency)

    def declared(self, recipe: RecipeSpec, judge: JudgeUse | None) -> Arm | None:
        """Return the arm of a declared recipe; None if its loss may exceed `max_loss`."""
        steps = [[self.answers.experts.index(name) for name in step] for step in recipe.steps]
        judgements = None if judge is None else judge.judgements
        if recipe.max_loss is not None:
            return self._within_loss(recipe.name, steps, recipe.max_loss, judgements)
        caps = np.array(recipe.caps_of(self.answers.experts) or [np.inf] * len(self.answers.experts))
        (arm,) = declared_arms(self.answers, recipe.name, steps, judgements, caps=caps)
        return arm

    def _within_loss(
        self, name: str, steps: list[list[int]], max_loss: float, judgements: Judgements | None
    ) -> Arm | None:
        """Return the cheapest arm whose loss against the last step is bounded.

        The bound needs policies that are fixed before they are tested, so these are fitted on two thirds of the prompts
        and tested on the rest.
        """
        prices = (SAFER_PRICE, DECLARED_PRICE)
        tested = self.answers.folds == 0
        fitted, held_out = np.flatnonzero(~tested), np.flatnonzero(tested)
        of_fitted = None if judgements is None else judgements.rows(fitted)
        fixed = declared_arms(self.answers.rows(fitted), name, steps, of_fitted, prices=prices)
        answers = self.answers.rows(held_out)
        grades = None if judgements is None else judgements.grades[held_out]
        accepted = accepted_thresholds([loss_of_stopping(one.policy, answers, grades) for one in fixed], max_loss)
        if not accepted:
            return None
        (arm,) = declared_arms(self.answers, name, steps, judgements, prices=prices[accepted - 1 : accepted])
        return replace(arm, policy=replace(fixed[accepted - 1].policy, max_loss=max_loss))

    def use(self, use: str, written: Array) -> Array:
        """Return a use of each answer (n_prompts, n_experts) if only a share `written` of its tokens was written."""
        if use == "dollars":
            return self.dollars - self.output_dollars * (1 - written)
        return self.latency_ms * written if use == "latency_ms" else self.active_b


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """Replays policies on recorded answers; a share `streamed` of the requests are streams.

    `expected` are the uses of the experts, which categories with few prompts follow.
    """

    table: AnswerTable
    judges: Mapping[str, JudgeUse]
    streamed: float
    expected: Uses

    def each(self, policies: Mapping[str, RecipePolicy]) -> dict[str, dict[str, Array]]:
        """Return the score, the calls of each member and the uses by arm, each of shape (n_prompts, ...)."""
        return {name: self._mixed(policy) for name, policy in policies.items()}

    def uses(self, policies: Mapping[str, RecipePolicy], found: Mapping[str, Mapping[str, Array]]) -> Uses:
        """Return the expected uses of arms by category from those of `each` prompt."""
        answers = self.table.answers
        called = [(policy.members, found[name]["calls"].mean(axis=0)) for name, policy in policies.items()]

        def by_category(use: str, of_experts: Array | None = None) -> Array:
            if not found:
                return np.empty((answers.n_categories, 0))
            relative = relative_use(of_experts, answers, called)
            return cost_by_category(answers, np.column_stack([one[use] for one in found.values()]), relative=relative)

        return Uses(
            active_b=by_category("active_b"),
            cost=by_category("dollars", self.expected.cost),
            latency_ms=by_category("latency_ms", self.expected.latency_ms),
            calls={name: cost_by_category(answers, one["calls"]) for name, one in found.items()},
        )

    def _mixed(self, policy: RecipePolicy) -> dict[str, Array]:
        plain = self._run(policy, streams=False)
        if not (self.streamed and policy.max_tokens):
            return plain
        streams = self._run(policy, streams=True)
        found = {use: (1 - self.streamed) * plain[use] + self.streamed * streams[use] for use in plain}
        return found | {"change": found["scores"] - plain["scores"]}

    def _run(self, policy: RecipePolicy, *, streams: bool) -> dict[str, Array]:
        table, judge = self.table, self.judges.get(policy.recipe)
        columns, sizes = member_columns(policy, table.answers.experts), [len(step.members) for step in policy.steps]
        grades = None if judge is None else judge.judgements.grades
        replay = replayed(policy, table.answers, grades=grades, streams=streams)
        called = replay.called[:, columns]
        judged = called[:, np.cumsum([0, *sizes[:-2]])].sum(axis=1)  # after each step but the last
        made = called if judge is None else np.column_stack((called, judged))
        scores = replay.scores[:, None]
        found = {"scores": scores, "change": np.zeros_like(scores), "calls": made.astype(np.float64)}
        for use in ("active_b", "dollars", "latency_ms"):
            each = of_calls(sizes, np.where(called, table.use(use, replay.written)[:, columns], 0.0), use)
            found[use] = each if judge is None else each + judged * getattr(judge, use)
        return found


def relative_use(use: Array | None, answers: Answers, arms: Sequence[tuple[Sequence[str], Array]]) -> Array | float:
    """Return how much more than on average arms use in each category by their calls, shape (n_categories, n_arms).

    `use` (n_categories, n_experts) is that of the experts. `arms` has the members of each arm and its mean calls of
    each. It is 1 where the use of a member is unknown.
    """
    if use is None or not arms:
        return 1.0
    of_calls = [use[:, [answers.experts.index(name) for name in names]] @ calls[: len(names)] for names, calls in arms]
    by_category = np.column_stack(of_calls)
    mean = by_category[answers.labels].mean(axis=0)
    known = np.isfinite(by_category) & (mean > 0)
    return np.asarray(np.divide(by_category, mean, out=np.ones_like(by_category), where=known))


def _priced_tokens(given: Array, written: Array) -> tuple[Array, Array]:
    """Return input and output tokens as the plan prices them, both (n_prompts, n_experts).

    An expert whose input was not counted has the assumed tokens, as `coe.planning.uses.declared_uses` has it.
    """
    is_counted = np.isfinite(given).any(axis=0)
    assumed = written / np.maximum(written.mean(axis=0), 1.0) * ASSUMED_OUTPUT_TOKENS
    return filled(given, ASSUMED_INPUT_TOKENS), np.where(is_counted, written, assumed)


def of_calls(steps: Sequence[int], each: Array, use: str) -> Array:
    """Return the use of an arm on each prompt from its calls `each`, (n_prompts, n_calls).

    `steps` are the numbers of members. The use is the sum over calls, but a step waits for its slowest member only.
    """
    if use != "latency_ms":
        return np.asarray(each.sum(axis=1))
    return np.asarray(sum(part.max(axis=1) for part in np.split(each, np.cumsum(steps)[:-1], axis=1)))


def _prices(specs: Sequence[ExpertSpec], which: str) -> NDArray[np.float64]:
    return np.array([getattr(spec.prices, which) for spec in specs], dtype=np.float64)
