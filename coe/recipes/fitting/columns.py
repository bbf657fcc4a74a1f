"""Builds the columns of a plan for recipes: the scores, uses and calls of each arm, from the records of `coe score`.

Cascades and votes are replayed from recorded answers. Declared ones are fitted with their declared steps, and tested
against their `max_loss`; `recipes: auto` adds proposed ones. Chains and fuses generate new answers, so they cannot be
replayed. They are left out unless `coe score --recipe` has measured them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from coe.measuring.quality import Quality, filled
from coe.measuring.recorded_answers import (
    Grades,
    MeasuredArm,
    RecordedAnswers,
    read_answers,
    read_grades,
    read_recipe_answers,
)
from coe.planning import MeasuredUses, Uses, declared_uses
from coe.planning.uses import ASSUMED_INPUT_TOKENS, ASSUMED_OUTPUT_TOKENS
from coe.recipes.agreement import NO_ANSWER, Array
from coe.recipes.fitting.answers import Answers
from coe.recipes.fitting.arms import Arm, cost_by_category, expected_quality, propose_arms
from coe.recipes.fitting.judged import JudgeUse, ungraded
from coe.recipes.fitting.replay import AnswerTable, Replay, of_calls, relative_use
from coe.recipes.policy import RecipePolicy
from coe.recipes.policy_file import WrittenArm
from coe.registry import ArmSpec, ExpertSpec, RecipeSpec, Registry

MIN_PROMPTS = 60
"""Smallest number of prompts with recorded answers of all experts. With fewer, no recipes are fitted."""


@dataclass(frozen=True, slots=True, eq=False)
class RecipeColumns:
    """The arms of a plan, in the order of its columns.

    `scores` has shape (n_prompts, n_arms), the expected `quality` (n_categories, n_arms), NaN where unknown. `uses` are
    the resource uses of the arms. `left_out` maps a recipe to the reason why it is not planned. The arms of chains and
    fuses are in `written` and follow those in `policies`.
    """

    policies: Mapping[str, RecipePolicy] = field(default_factory=dict)
    written: Mapping[str, WrittenArm] = field(default_factory=dict)
    scores: Array = field(default_factory=lambda: np.empty((0, 0)))
    quality: Array = field(default_factory=lambda: np.empty((0, 0)))
    uses: Uses = field(default_factory=Uses)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of the columns."""
        return (*self.policies, *self.written)

    @property
    def members(self) -> dict[str, tuple[str, ...]]:
        """The members of each arm in the order of their first calls, and its judge."""
        steps = {name: arm.steps for name, arm in self.written.items()}
        written = {name: tuple(dict.fromkeys(one for step in found for one in step)) for name, found in steps.items()}
        judged = {name: (one.judge,) if one.judge else () for name, one in self.policies.items()}
        return {name: (*policy.members, *judged[name]) for name, policy in self.policies.items()} | written

    def joined(self, others: RecipeColumns) -> RecipeColumns:
        """Return these columns, followed by the columns of chains and fuses."""
        left_out = {**self.left_out, **others.left_out}
        if not self.arms or not others.arms:
            return replace(self if self.arms else others, left_out=left_out)
        return RecipeColumns(
            self.policies,
            {**self.written, **others.written},
            np.hstack((self.scores, others.scores)),
            np.hstack((self.quality, others.quality)),
            self.uses.joined(others.uses, len(others.arms)),
            left_out,
        )

    def of_requests(self, probes: Uses, requests: Uses, experts: Sequence[str]) -> RecipeColumns:
        """Return the columns with cost and latency as those of requests, which may be longer than probes.

        `probes` and `requests` are the uses of `experts`. The uses of an arm grow as those of its calls.
        """
        uses = replace(
            self.uses,
            cost=self._scaled(self.uses.cost, probes.cost, requests.cost, experts),
            latency_ms=self._scaled(self.uses.latency_ms, probes.latency_ms, requests.latency_ms, experts),
        )
        return replace(self, uses=uses)

    def _scaled(
        self, use: Array | None, probes: Array | None, requests: Array | None, experts: Sequence[str]
    ) -> Array | None:
        if use is None or probes is None or requests is None:
            return use
        scaled = use.copy()
        for number, arm in enumerate(self.arms):
            called, calls = [experts.index(name) for name in self.members[arm]], self.uses.calls[arm]
            before, after = ((calls * each[:, called]).sum(axis=1) for each in (probes, requests))
            known = np.isfinite(before) & np.isfinite(after) & (before > 0)
            scaled[known, number] *= after[known] / before[known]
        return scaled


def fitted_columns(
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
    """Fit the arms of all cascades and votes on the prompts `rows` of `data`, all of them of `categories`.

    `grades` are those of the judges by name. `only` are the recipes to fit, by default the declared and the proposed.
    `streamed` is the share of streamed requests, to which fewer caps apply. `expected` are the uses of `experts`, to
    which estimates of categories with few prompts are shrunk.
    """
    declared = registry.declared_recipes if only is None else only
    wanted = [recipe for recipe in declared if not recipe.writes]
    proposes = registry.proposes_recipes and only is None
    if not wanted and not proposes:
        return RecipeColumns()
    prompts, reason = _usable_prompts(data, recorded, rows, experts)
    if recorded is None or reason:
        return RecipeColumns(left_out={recipe.name: reason for recipe in wanted} or {"auto": reason})
    table = AnswerTable.of(registry, data, recorded, prompts, experts, categories)
    planned: dict[str, Arm] = {}
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
        if (arm := table.declared(recipe, judges.get(recipe.name))) is not None:
            planned[recipe.name] = arm
        else:
            left_out[recipe.name] = (
                f"the {int((table.answers.folds == 0).sum())} held-out probes (a third of {len(prompts)}) do not show "
                f"a loss below max_loss {recipe.max_loss:g} with 95 % confidence; score more probes, or raise max_loss"
            )
    if proposes:
        planned |= {arm.policy.recipe: arm for arm in propose_arms(table.answers, max_calls=registry.policy.max_calls)}
    replay = Replay(table, judges, streamed, expected or Uses())
    return _columns(replay, planned, left_out, data, rows)


def _usable_prompts(
    data: Quality, recorded: RecordedAnswers | None, rows: Sequence[int], experts: Sequence[str]
) -> tuple[list[int], str]:
    """Return the rows with an answer of every expert, and the reason if they are too few, else an empty text."""
    if recorded is None:
        return [], "the scores have no recorded answers; run `coe score` again"
    found = np.asarray(rows)[recorded.recorded[data.grid(rows, experts)].all(axis=1)].tolist()
    if len(found) < MIN_PROMPTS:
        return found, f"answers of all experts are recorded for {len(found)} probes, and {MIN_PROMPTS} are needed"
    return found, ""


def _columns(
    replay: Replay,
    planned: Mapping[str, Arm],
    left_out: Mapping[str, str],
    data: Quality,
    rows: Sequence[int],
) -> RecipeColumns:
    """Return the columns of the planned arms; prompts of `rows` without recorded answers score NaN."""
    policies, answers = {name: arm.policy for name, arm in planned.items()}, replay.table.answers
    found = replay.each(policies)
    scores = np.full((len(data.prompts), len(planned)), np.nan)
    for number, (name, arm) in enumerate(planned.items()):
        scores[replay.table.prompts, number] = np.clip(arm.outcome.scores + found[name]["change"][:, 0], 0.0, 1.0)
    uses, nothing = replay.uses(policies, found), np.empty((answers.n_categories, 0))
    return RecipeColumns(
        policies=policies,
        scores=scores[list(rows)],
        quality=expected_quality(answers, scores[replay.table.prompts]) if planned else nothing,
        uses=uses,
        left_out=left_out,
    )


def recipe_columns(
    folder: Path,
    data: Quality,
    registry: Registry,
    *,
    rows: Sequence[int],
    experts: Sequence[str],
    categories: Sequence[str],
    only: Sequence[RecipeSpec] | None = None,
    streamed: float,
    probed: MeasuredUses | None = None,
    expected: MeasuredUses | None = None,
) -> RecipeColumns:
    """Return the columns of recipes from a folder of scores, for the prompts `rows` of `data`.

    The categories of these prompts are all among `categories`. `only` are the recipes to measure, by default the
    declared and the proposed ones. `streamed` is the share of streamed requests. `probed` are the uses of experts that
    these scores measured; with the `expected` uses of requests, those of the arms are scaled to requests.
    """
    wanted = registry.declared_recipes if only is None else only
    names = {recipe.name for recipe in wanted}
    recorded = read_answers(folder, data) if registry.recipes else None
    judges = dict.fromkeys(recipe.judge for recipe in wanted if recipe.judge is not None)
    uses = Uses() if probed is None else declared_uses(registry, categories, experts, measured=probed)
    replayed = fitted_columns(
        registry,
        data,
        recorded,
        rows=rows,
        experts=experts,
        categories=categories,
        grades=read_grades(folder, data, list(judges)),
        only=only,
        streamed=streamed,
        expected=uses,
    )
    writing = [arm for arm in registry.recipe_arms if arm.writing_digest and arm.name in names]
    measured = read_recipe_answers(folder, data, writing)
    columns = replayed.joined(_written_columns(writing, data, measured, rows, experts, categories, uses))
    if expected is None:
        return columns
    return columns.of_requests(uses, declared_uses(registry, categories, experts, measured=expected), experts)


def _written_columns(
    arms: Sequence[ArmSpec],
    data: Quality,
    measured: Mapping[str, MeasuredArm],
    rows: Sequence[int],
    experts: Sequence[str],
    categories: Sequence[str],
    expected: Uses,
) -> RecipeColumns:
    """Return the columns of the chains and fuses that were measured."""
    found, left_out = RecipeColumns(), dict[str, str]()
    for arm in arms:
        absent = dict.fromkeys(one.name for one in arm.members if one.name not in experts)
        here = [row for row in rows if arm.name in measured and np.isfinite(measured[arm.name].scores[row])]
        if absent:
            left_out[arm.name] = f"no scores of {', '.join(absent)}; run `coe score` for them"
        elif len(here) < MIN_PROMPTS:
            count = f"it is measured on {len(here)} probes, and {MIN_PROMPTS} are needed" if here else "not measured"
            command = f"`coe score PROBES --out FOLDER --recipe {arm.name}` calls it for real"
            left_out[arm.name] = f"{count}; {command}"
        else:
            answers = _answers(data, here, experts, categories)
            found = found.joined(_column(arm, measured[arm.name], answers, here, rows, expected))
    return replace(found, left_out=left_out)


def _answers(data: Quality, prompts: Sequence[int], experts: Sequence[str], categories: Sequence[str]) -> Answers:
    """Return the experts' scores on some prompts, without their answers, which are not needed."""
    scores = data.scores[data.grid(prompts, experts)]
    nothing, classes = np.zeros(scores.shape), np.full(scores.shape, NO_ANSWER, dtype=np.int64)
    labels = data.labels(prompts, categories)
    return Answers(tuple(experts), classes, scores, nothing, nothing, labels, len(categories))


def _column(
    arm: ArmSpec,
    measured: MeasuredArm,
    answers: Answers,
    prompts: Sequence[int],
    rows: Sequence[int],
    expected: Uses,
) -> RecipeColumns:
    """Return the column of one arm, with the calls of each member added up."""
    members = dict.fromkeys(one.name for one in arm.members)
    scores = measured.scores[list(prompts), np.newaxis]
    sizes = [len(names) for names in arm.steps]
    each = {name: values[list(prompts)] for name, values in measured.uses.items()}
    shape = (len(prompts), len(arm.members))
    active_b = np.array([one.active_parameters_b for one in arm.members], dtype=np.float64)  # NaN for None
    times = filled(each["latency_ms"], np.array([one.latency_ms for one in arm.members], dtype=np.float64))

    def by_category(values: Array, use: Array | None = None) -> Array:
        relative = relative_use(use, answers, [(tuple(members), called)])
        return cost_by_category(answers, values[:, np.newaxis], relative=relative)

    called = np.array([sum(one.name == name for one in arm.members) for name in members], dtype=np.float64)
    return RecipeColumns(
        written={arm.name: WrittenArm(arm.name, arm.steps, arm.writing_digest)},
        scores=measured.scores[list(rows), np.newaxis],
        quality=expected_quality(answers, scores),
        uses=Uses(
            active_b=by_category(of_calls(sizes, np.broadcast_to(active_b, shape), "active_b")),
            cost=by_category(of_calls(sizes, _dollars(arm.members, each), "dollars"), expected.cost),
            latency_ms=by_category(of_calls(sizes, times, "latency_ms"), expected.latency_ms),
            calls={arm.name: np.tile(called, (answers.n_categories, 1))},
        ),
    )


def _dollars(members: Sequence[ExpertSpec], each: Mapping[str, Array]) -> Array:
    """Return the US dollars per thousand requests of each call; tokens that were not counted are assumed."""
    given = filled(each["input_tokens"], ASSUMED_INPUT_TOKENS)
    written = filled(each["output_tokens"], ASSUMED_OUTPUT_TOKENS)
    prices = np.array([(one.prices.input, one.prices.output) for one in members])
    return np.asarray((given * prices[:, 0] + written * prices[:, 1]) / 1000)
