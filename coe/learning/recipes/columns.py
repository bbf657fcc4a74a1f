"""Builds the columns of a plan for recipes: the scores, costs and calls of each arm on the answers of `coe score`.

Declared cascades and votes are fitted with their declared steps, and a bound on their loss is tested. `recipes: auto`
adds proposed ones. `measured` has the columns of chains and fuses. `coe plan` uses them (`coe.jobs.plan_basis`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from coe.experts.recipes.agreement import Array
from coe.experts.recipes.policy import RecipePolicy, member_columns
from coe.experts.recipes.policy_file import WrittenArm
from coe.learning.evaluation.grades import Grades
from coe.learning.evaluation.quality import Quality
from coe.learning.evaluation.recorded_answers import RecordedAnswers
from coe.learning.recipes.answers import Answers
from coe.learning.recipes.arms import Arm, cost_by_category, declared_arms, propose_arms, quality_by_category
from coe.learning.recipes.fit import against_last_step, replayed
from coe.learning.recipes.guarantee import accepted_thresholds, loss_per_difference
from coe.learning.recipes.judged import Judgements, JudgeUse, ungraded
from coe.learning.recipes.traffic import CACHED
from coe.mapping import Uses
from coe.mapping.uses import ASSUMED_INPUT_TOKENS, ASSUMED_OUTPUT_TOKENS
from coe.registry import ExpertSpec, Registry
from coe.registry.recipes import RECIPE_LEVELS, RecipeSpec

MIN_PROMPTS = 60
"""Prompts with recorded answers of all experts that recipes are fitted on."""


@dataclass(frozen=True, slots=True, eq=False)
class RecipeColumns:
    """The arms of a plan, in the order of its columns.

    `scores` has shape (n_prompts, n_arms); the expected `quality` and the uses have shape (n_categories, n_arms), NaN
    where unknown. `calls` maps an arm to the mean calls of each member, shape (n_categories, n_members), and `left_out`
    a recipe to the reason why it is not planned. Arms of chains and fuses are `written` and follow the others.
    """

    policies: Mapping[str, RecipePolicy] = field(default_factory=dict)
    written: Mapping[str, WrittenArm] = field(default_factory=dict)
    scores: Array = field(default_factory=lambda: np.empty((0, 0)))
    quality: Array = field(default_factory=lambda: np.empty((0, 0)))
    active_b: Array = field(default_factory=lambda: np.empty((0, 0)))
    cost: Array = field(default_factory=lambda: np.empty((0, 0)))
    latency_ms: Array = field(default_factory=lambda: np.empty((0, 0)))
    calls: Mapping[str, Array] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def arms(self) -> tuple[str, ...]:
        """Return the names of the columns."""
        return (*self.policies, *self.written)

    @property
    def members(self) -> dict[str, tuple[str, ...]]:
        """Return the members of each arm in the order of their first calls, and its judge."""
        steps = {name: arm.steps for name, arm in self.written.items()}
        written = {name: tuple(dict.fromkeys(one for step in found for one in step)) for name, found in steps.items()}
        judged = {name: (one.judge,) if one.judge else () for name, one in self.policies.items()}
        return {name: (*policy.members, *judged[name]) for name, policy in self.policies.items()} | written

    def joined(self, others: RecipeColumns) -> RecipeColumns:
        """Return these columns, and behind them the columns of chains and fuses."""
        left_out = {**self.left_out, **others.left_out}
        if not self.arms or not others.arms:
            return replace(self if self.arms else others, left_out=left_out)

        def both(name: str) -> Array:
            return np.hstack((getattr(self, name), getattr(others, name)))

        return RecipeColumns(
            policies=self.policies,
            written={**self.written, **others.written},
            scores=both("scores"),
            quality=both("quality"),
            active_b=both("active_b"),
            cost=both("cost"),
            latency_ms=both("latency_ms"),
            calls={**self.calls, **others.calls},
            left_out=left_out,
        )

    def beside(self, uses: Uses) -> Uses:
        """Return the uses of experts with the columns of the arms behind them."""
        if not self.arms:
            return uses

        def joined(found: Array | None, added: Array) -> Array | None:
            return None if found is None else np.hstack((found, added))

        memory = None if uses.memory_gb is None else np.append(uses.memory_gb, np.zeros(len(self.arms)))
        return Uses(
            memory_gb=memory,
            active_b=joined(uses.active_b, self.active_b),
            cost=joined(uses.cost, self.cost),
            latency_ms=joined(uses.latency_ms, self.latency_ms),
            calls={**uses.calls, **self.calls},
        )


def recipe_columns(
    registry: Registry,
    data: Quality,
    recorded: RecordedAnswers | None,
    *,
    rows: Sequence[int],
    experts: Sequence[str],
    categories: Sequence[str],
    grades: Mapping[str, Grades] | None = None,
    only: Sequence[RecipeSpec] | None = None,
    streamed: float,
    expected: Uses | None = None,
) -> RecipeColumns:
    """Fit the arms of all cascades and votes on the prompts `rows` of `data`, whose categories are all among
    `categories`.

    `grades` are those of the judges by name. `only` are the recipes to fit, by default the declared and the proposed.
    `streamed` is the share of requests whose answers are streamed, where fewer caps apply. `expected` are the uses of
    `experts`, which categories with few prompts are expected to follow.
    """
    declared = registry.declared_recipes if only is None else only
    wanted = [recipe for recipe in declared if not recipe.writes]
    proposes = registry.proposes_recipes and only is None
    if not wanted and not proposes:
        return RecipeColumns()
    prompts, reason = _usable_prompts(data, recorded, rows, experts)
    if recorded is None or reason:
        return RecipeColumns(left_out={recipe.name: reason for recipe in wanted} or {"auto": reason})
    table = _AnswerTable.of(registry, data, recorded, prompts, experts, categories)
    planned: dict[str, list[Arm]] = {}
    judges: dict[str, JudgeUse] = {}
    left_out: dict[str, str] = {}
    for recipe in wanted:
        if absent := [name for name in dict.fromkeys(recipe.called) if name not in experts]:
            left_out[recipe.name] = f"no scores of {', '.join(absent)}; run `coe score` for them"
            continue
        if recipe.judge is not None:
            reason = ungraded(recipe, (grades or {}).get(recipe.judge), data, prompts)
            if reason:
                left_out[recipe.name] = reason
                continue
            judge, known = registry.expert(recipe.judge), (grades or {})[recipe.judge]
            judges[recipe.name] = JudgeUse.of(judge, known, table.cells, by_dollars=bool(table.dollars.any()))
        found = table.declared(recipe, judges.get(recipe.name))
        planned[recipe.name] = found
        if not found:
            left_out[recipe.name] = (
                f"the {int((table.answers.folds == 0).sum())} held-out probes (a third of {len(prompts)}) do not show "
                f"a loss below max_loss {recipe.max_loss:g} with 95 % confidence; score more probes, or raise max_loss"
            )
    if proposes:
        for arm in propose_arms(table.answers, max_calls=registry.policy.max_calls):
            planned.setdefault(arm.policy.recipe, []).append(arm)
    return table.columns(planned, judges, left_out, data, rows, streamed=streamed, expected=expected or Uses())


def _usable_prompts(
    data: Quality, recorded: RecordedAnswers | None, rows: Sequence[int], experts: Sequence[str]
) -> tuple[list[int], str]:
    """Return the rows with an answer of every expert, and why they are too few; empty if they are enough."""
    if recorded is None:
        return [], "the scores have no recorded answers; run `coe score` again"
    columns = [data.models.index(name) for name in experts]
    found = [row for row in rows if recorded.recorded[row, columns].all()]
    if len(found) < MIN_PROMPTS:
        return found, f"answers of all experts are recorded for {len(found)} probes, and {MIN_PROMPTS} are needed"
    return found, ""


@dataclass(frozen=True, slots=True, eq=False)
class _AnswerTable:
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
    ) -> _AnswerTable:
        specs = [registry.expert(name) for name in experts]
        cells = np.ix_(prompts, [data.models.index(name) for name in experts])
        tokens, shape = recorded.tokens[cells], (len(prompts), len(experts))
        unknown = np.full(data.scores.shape, np.nan)
        given, written = _priced_tokens(data.uses.get("input_tokens", unknown)[cells], tokens)
        cached = filled(data.uses.get(CACHED, unknown)[cells], np.zeros(len(experts)))
        output_dollars = written * _prices(specs, "output") / 1000
        input_dollars = ((given - cached) * _prices(specs, "input") + cached * _prices(specs, "cached")) / 1000
        dollars = input_dollars + output_dollars
        sizes = np.array([np.nan if spec.active_parameters_b is None else spec.active_parameters_b for spec in specs])
        by_tokens = tokens / 1000 * (sizes if np.isfinite(sizes).all() else 1.0)
        answers = Answers(
            tuple(experts),
            recorded.classes[cells],
            data.scores[cells],
            dollars if dollars.any() else by_tokens,
            tokens,
            np.array([list(categories).index(data.categories[row]) for row in prompts]),
            len(categories),
            output_dollars if dollars.any() else by_tokens,
            counted=tuple(bool(column.all()) for column in recorded.counted[cells].T),
        )
        declared = np.array([np.nan if spec.latency_ms is None else spec.latency_ms for spec in specs])
        latency = filled(data.uses.get("latency_ms", unknown)[cells], declared)
        return cls(answers, prompts, cells, np.broadcast_to(sizes, shape), dollars, output_dollars, latency)

    def declared(self, recipe: RecipeSpec, judge: JudgeUse | None) -> list[Arm]:
        """Return the arms of a declared recipe; without those whose loss may exceed `max_loss`."""
        steps = [[self.answers.experts.index(name) for name in step] for step in recipe.steps]
        judgements = None if judge is None else judge.judgements
        caps = np.array(recipe.caps_of(self.answers.experts) or [np.inf] * len(self.answers.experts))
        arms = declared_arms(self.answers, recipe.name, steps, judgements, caps=caps)
        if recipe.max_loss is None:
            return arms
        return self._within_loss(arms, recipe.name, steps, recipe.max_loss, judgements)

    def _within_loss(
        self,
        arms: Sequence[Arm],
        name: str,
        steps: list[list[int]],
        max_loss: float,
        judgements: Judgements | None,
    ) -> list[Arm]:
        """Return the arms whose loss against the last step is bounded, the safest ones.

        The bound needs policies that are fixed before they are tested, so these are fitted on two thirds of the prompts
        and tested on the rest.
        """
        tested = self.answers.folds == 0
        fitted, held_out = np.flatnonzero(~tested), np.flatnonzero(tested)
        fixed = declared_arms(
            self.answers.rows(fitted), name, steps, None if judgements is None else judgements.rows(fitted)
        )
        answers = self.answers.rows(held_out)
        grades = None if judgements is None else judgements.grades[held_out]
        compared = [against_last_step(arm.policy, answers, grades) for arm in fixed]
        kept = accepted_thresholds([loss for loss, _, _ in compared[::-1]], max_loss)
        bounded = []
        for one, arm, (loss, differs, is_audited) in zip(fixed, arms, compared, strict=True):
            per_difference = loss_per_difference(loss[is_audited], differs[is_audited], max_loss)
            policy = replace(one.policy, loss_per_difference=per_difference, max_loss=max_loss)
            bounded.append(Arm(policy, arm.outcome))
        return bounded[len(bounded) - kept :]

    def columns(
        self,
        planned: Mapping[str, Sequence[Arm]],
        judges: Mapping[str, JudgeUse],
        left_out: Mapping[str, str],
        data: Quality,
        rows: Sequence[int],
        *,
        streamed: float,
        expected: Uses,
    ) -> RecipeColumns:
        """Return the columns of the planned arms; prompts of `rows` without recorded answers score NaN."""
        named = {f"{name}@{level}": arm for name, arms in planned.items() for level, arm in _levels(arms)}
        scores = np.full((len(data.prompts), len(named)), np.nan)
        quality, found = self._by_category([]), {}
        for number, (name, arm) in enumerate(named.items()):
            judge = judges.get(arm.policy.recipe)
            plain = self._replay(arm.policy, judge, streams=False)
            found[name] = plain
            if streamed and arm.policy.max_tokens:
                streams = self._replay(arm.policy, judge, streams=True)
                found[name] = {use: (1 - streamed) * plain[use] + streamed * streams[use] for use in plain}
            changed = arm.outcome.scores + (found[name]["scores"] - plain["scores"])[:, 0]
            named[name] = replace(arm, outcome=replace(arm.outcome, scores=np.clip(changed, 0.0, 1.0)))
            scores[self.prompts, number] = named[name].outcome.scores
        if named:
            quality = quality_by_category(self.answers, list(named.values()))
        called = [(arm.policy.members, found[name]["calls"].mean(axis=0)) for name, arm in named.items()]

        def relative(use: Array | None) -> Array | float:
            return relative_use(use, self.answers, called)

        return RecipeColumns(
            policies={name: arm.policy for name, arm in named.items()},
            scores=scores[list(rows)],
            quality=quality,
            active_b=self._by_category([one["active_b"] for one in found.values()]),
            cost=self._by_category([one["dollars"] for one in found.values()], relative(expected.cost)),
            latency_ms=self._by_category([one["latency_ms"] for one in found.values()], relative(expected.latency_ms)),
            calls={name: cost_by_category(self.answers, one["calls"]) for name, one in found.items()},
            left_out=left_out,
        )

    def _replay(self, policy: RecipePolicy, judge: JudgeUse | None, *, streams: bool) -> dict[str, Array]:
        """Return the score, the calls of each member and the uses of a policy, each of shape (n_prompts, ...)."""
        columns, sizes = member_columns(policy, self.answers.experts), [len(step.members) for step in policy.steps]
        grades = None if judge is None else judge.judgements.grades
        replay = replayed(policy, self.answers, grades=grades, streams=streams)
        called = replay.called[:, columns]
        judged = called[:, np.cumsum([0, *sizes[:-2]])].sum(axis=1)  # after each step but the last
        made = called if judge is None else np.column_stack((called, judged))
        found = {"scores": replay.scores[:, None], "calls": made.astype(np.float64)}
        for use in ("active_b", "dollars", "latency_ms"):
            each = of_calls(sizes, np.where(called, self._use(use, replay.written)[:, columns], 0.0), use)
            found[use] = each if judge is None else each + judged * getattr(judge, use)
        return found

    def _use(self, use: str, written: Array) -> Array:
        """Return a use of each answer (n_prompts, n_experts) if only a share `written` of its tokens was written."""
        if use == "dollars":
            return self.dollars - self.output_dollars * (1 - written)
        return self.latency_ms * written if use == "latency_ms" else self.active_b

    def _by_category(self, by_arm: Sequence[Array], relative: Array | float = 1.0) -> Array:
        if not by_arm:
            return np.empty((self.answers.n_categories, 0))
        return cost_by_category(self.answers, np.column_stack(by_arm), relative=relative)


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

    An expert whose input was not counted has the assumed tokens, as `coe.mapping.uses.declared_uses` has it.
    """
    is_counted = np.isfinite(given).any(axis=0)
    assumed = written / np.maximum(written.mean(axis=0), 1.0) * ASSUMED_OUTPUT_TOKENS
    return filled(given, np.full(given.shape[1], ASSUMED_INPUT_TOKENS)), np.where(is_counted, written, assumed)


def filled(values: Array, otherwise: Array) -> Array:
    """Fill NaN with the mean of the column, or with `otherwise` (n_columns,) where the column has no value."""
    count = np.isfinite(values).sum(axis=0)
    mean = np.divide(np.nansum(values, axis=0), count, out=otherwise.astype(np.float64), where=count > 0)
    return np.where(np.isfinite(values), values, mean)


def of_calls(steps: Sequence[int], each: Array, use: str) -> Array:
    """Return the use of an arm on each prompt from its calls `each`, (n_prompts, n_calls).

    `steps` are the numbers of members. The use is the sum over calls, but a step waits for its slowest member only.
    """
    if use != "latency_ms":
        return np.asarray(each.sum(axis=1))
    return np.asarray(sum(part.max(axis=1) for part in np.split(each, np.cumsum(steps)[:-1], axis=1)))


def _levels(arms: Sequence[Arm]) -> list[tuple[int, Arm]]:
    """Number the arms of a recipe: the last one keeps its highest level, if `max_loss` has removed cheaper ones."""
    several = bool(arms) and len(arms[0].policy.steps) > 1
    first = RECIPE_LEVELS - len(arms) + 1 if several else 1
    return [(first + number, arm) for number, arm in enumerate(arms)]


def _prices(specs: Sequence[ExpertSpec], which: str) -> NDArray[np.float64]:
    return np.array([getattr(spec.prices, which) for spec in specs], dtype=np.float64)
