"""Builds the columns of a plan for recipes: the scores, uses and calls of each arm, from the records of `coe score`.

Cascades and votes are replayed from recorded answers: declared ones are fitted with their declared steps and tested for
their `max_loss`, and `recipes: auto` adds proposed ones. Chains and fuses generate new answers, so they cannot be
replayed. They are left out unless `coe score --recipe` has measured them.

Estimates the quality and the cost of a recipe's arm by category, from its outcome on recorded answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coe.measuring.quality import Quality, filled
from coe.measuring.recorded_answers import MeasuredArm, read_answers, read_grades, read_recipe_answers
from coe.planning.uses import ASSUMED_INPUT_TOKENS, ASSUMED_OUTPUT_TOKENS, MEASURES, MeasuredUses, Uses, declared_uses
from coe.recipes.agreement import GRADE_TOKENS, NO_ANSWER, Array
from coe.recipes.fitting.fit import Answers, Arm, Judgements, RecipeFit, bounded_arm, propose_arms, replayed
from coe.recipes.policy import RecipePolicy, WrittenArm
from coe.registry import ArmSpec, ExpertSpec, RecipeSpec, Registry

MIN_PSEUDO_COUNT, MAX_PSEUDO_COUNT = 1e-3, 1000.0
"""Limits of the fitted pseudo-count; a category without prompts needs some."""
COST_PSEUDO_COUNT = 30.0
"""Prompts of mean cost that a category's mean cost is shrunk by."""


def expected_quality(answers: Answers, scores: Array) -> Array:
    """Return the expected quality of arms, shape (n_categories, n_arms), from their `scores` (n_prompts, n_arms).

    It is the quality of the best single expert, plus the arm's gain over it, both shrunk towards their mean over
    categories. Gains differ much less between categories than qualities do, so they are shrunk more: an arm is not
    preferred for a lucky category.
    """
    best = answers.scores[:, [int(answers.scores.mean(axis=0).argmax())]]
    gains = scores - best
    return _shrunk(best, answers, _pseudo_count(best, answers)) + _shrunk(gains, answers, _pseudo_count(gains, answers))


def cost_by_category(answers: Answers, costs: Array, *, relative: Array | float = 1.0) -> Array:
    """Return the expected cost of each column (n_categories, n_columns) from its cost on each prompt.

    `relative` (n_categories, n_columns) is how much more than the mean of all prompts a category is expected to cost
    before its prompts are seen.
    """
    return _shrunk(costs, answers, np.full(costs.shape[1], COST_PSEUDO_COUNT), relative)


def relative_use(use: Array, answers: Answers, calls: Array) -> Array:
    """Return how much more than on average arms use in each category by their calls, shape (n_categories, n_arms).

    `use` (n_categories, n_experts) is that of the experts, `calls` (n_arms, n_experts) the mean calls of each arm. It
    is 1 where the use of a member is unknown.
    """
    by_category = np.column_stack([use[:, made > 0] @ made[made > 0] for made in calls])
    mean = by_category[answers.labels].mean(axis=0)
    known = np.isfinite(by_category) & (mean > 0)
    return np.asarray(np.divide(by_category, mean, out=np.ones_like(by_category), where=known))


def _shrunk(values: Array, answers: Answers, pseudo_count: Array, relative: Array | float = 1.0) -> Array:
    """Return means by category (n_categories, n_columns), shrunk towards `relative` times the mean of all prompts."""
    sums, counts = answers.posterior.T @ values, answers.posterior.sum(axis=0)[:, None]
    return np.asarray((sums + pseudo_count * values.mean(axis=0) * relative) / (counts + pseudo_count))


def _pseudo_count(values: Array, answers: Answers) -> Array:
    """Return the empirical Bayes pseudo-count of each column: variance within categories over variance between them."""
    counts = answers.posterior.sum(axis=0)
    found = (answers.posterior.T @ values) / np.maximum(counts, 1.0)[:, None]
    within = ((values - found[answers.labels]) ** 2).sum(axis=0) / max(len(values) - answers.n_categories, 1)
    spread = counts @ (found - values.mean(axis=0)) ** 2 / len(values)
    between = spread - within * (np.count_nonzero(counts) - 1) / len(values)
    return np.asarray(np.clip(within / np.maximum(between, 1e-12), MIN_PSEUDO_COUNT, MAX_PSEUDO_COUNT))


MIN_PROMPTS = 60
"""Smallest number of prompts with recorded answers of all experts. With fewer, no recipes are fitted."""
DECLARED_PRICE = 0.016
"""Price of a declared recipe, like SEARCHED_PRICES."""
SAFER_PRICE = 0.004
"""Price of a declared recipe whose `max_loss` the probes do not show at DECLARED_PRICE."""


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
        return {name: policy.called for name, policy in self.policies.items()} | {
            name: arm.members for name, arm in self.written.items()
        }


class _NotPlannedError(Exception):
    """The reason why a recipe is not planned, with the remedy."""


@dataclass(frozen=True, slots=True, eq=False)
class _Replay:
    """An arm on the prompts on which it was measured, rows `prompts` of the quality data.

    `answers` are those of the experts to these prompts, `scores` (n_prompts,) those of the arm. `calls` (n_prompts,
    n_members) are those of `members`, `uses` (n_prompts,) the sums over the calls, by the names of `Uses`.
    """

    answers: Answers
    prompts: Sequence[int]
    scores: Array
    members: tuple[str, ...]
    calls: Array
    uses: Mapping[str, Array]

    def expected(self, use: str, probed: Uses, requests: Uses | None) -> Array:
        """Return the expected use by category, shape (n_categories,); `probed` are the uses of the experts.

        It grows as that of the calls from probes to `requests`, whose uses of the experts are given, since requests may
        be longer.
        """
        answers, of_experts, relative = self.answers, getattr(probed, use), None
        columns = [answers.experts.index(name) for name in self.members]
        if of_experts is not None and use != "active_b":
            calls = np.zeros((1, len(answers.experts)))
            calls[0, columns] = self.calls.mean(axis=0)
            relative = relative_use(of_experts, answers, calls)
        found = cost_by_category(answers, self.uses[use][:, np.newaxis], relative=1.0 if relative is None else relative)
        if relative is not None and requests is not None:
            calls = cost_by_category(answers, self.calls)
            before, after = ((calls * getattr(one, use)[:, columns]).sum(axis=1) for one in (probed, requests))
            is_known = np.isfinite(before) & np.isfinite(after) & (before > 0)
            found[is_known, 0] *= after[is_known] / before[is_known]
        return found[:, 0]


def recipe_columns(
    folder: Path,
    data: Quality,
    registry: Registry,
    *,
    rows: Sequence[int],
    experts: Sequence[str],
    categories: Sequence[str],
    only: Sequence[RecipeSpec] | None = None,
    probed: MeasuredUses | None = None,
    expected: MeasuredUses | None = None,
) -> RecipeColumns:
    """Return the columns of recipes from a folder of scores, for the prompts `rows` of `data`.

    The categories of these prompts are all among `categories`. `only` are the recipes to measure, by default the
    declared and the proposed ones. `probed` are the uses of experts that these scores measured; with the `expected`
    uses of requests, those of the arms are scaled to requests.
    """
    probes = _Probes(folder, data, registry, rows, experts, categories)
    wanted = registry.declared_recipes if only is None else only
    left_out = {
        recipe.name: f"no scores of {', '.join(absent)}; run `coe score` for them"
        for recipe in wanted
        if (absent := [name for name in dict.fromkeys(recipe.called) if name not in experts])
    }
    known = [recipe for recipe in wanted if recipe.name not in left_out]
    compared = [recipe for recipe in known if not recipe.writes]
    proposes = registry.proposes_recipes and only is None
    policies, written = dict[str, RecipePolicy](), dict[str, WrittenArm]()
    replays = dict[str, _Replay]()
    try:
        if compared or proposes:
            table = probes.answer_table()
            for recipe in compared:
                try:
                    judgements = None if recipe.judge is None else probes.judgements(recipe, table)
                except _NotPlannedError as error:
                    left_out[recipe.name] = str(error)
                    continue
                steps = [[table.answers.experts.index(name) for name in step] for step in recipe.steps]
                fit, unit = RecipeFit(table.answers, steps, judgements), 1 / table.answers.typical_cost
                if recipe.max_loss is None:
                    arm = fit.arm(DECLARED_PRICE * unit)
                elif (
                    bounded := bounded_arm(fit, (SAFER_PRICE * unit, DECLARED_PRICE * unit), recipe.max_loss)
                ) is None:
                    left_out[recipe.name] = (
                        f"the {len(table.prompts)} probes do not show a loss below max_loss {recipe.max_loss:g} with "
                        "95 % confidence; score more probes, or raise max_loss"
                    )
                    continue
                else:
                    arm = bounded
                policies[recipe.name], replays[recipe.name] = arm.policy, table.replay(arm, judgements)
            if proposes:
                for name, arm in propose_arms(table.answers, max_calls=registry.policy.max_calls).items():
                    policies[name], replays[name] = arm.policy, table.replay(arm, None)
    except _NotPlannedError as error:
        left_out |= {recipe.name: str(error) for recipe in compared} or {"auto": str(error)}
    names = {recipe.name for recipe in known if recipe.writes}
    writing = [spec for spec in registry.recipe_arms if spec.name in names]
    measured = read_recipe_answers(folder, data, writing)
    for spec in writing:
        here = [row for row in rows if spec.name in measured and np.isfinite(measured[spec.name].scores[row])]
        if len(here) < MIN_PROMPTS:
            count = f"it is measured on {len(here)} probes, and {MIN_PROMPTS} are needed" if here else "not measured"
            command = f"`coe score PROBES --out FOLDER --recipe {spec.name}` calls it for real"
            left_out[spec.name] = f"{count}; {command}"
        else:
            written[spec.name] = WrittenArm(spec.steps, spec.writing_digest)
            replays[spec.name] = probes.written_replay(spec, measured[spec.name], here)
    if not replays:
        return RecipeColumns(left_out=left_out)
    scores = np.full((len(data.prompts), len(replays)), np.nan)
    for number, one in enumerate(replays.values()):
        scores[one.prompts, number] = one.scores
    uses = Uses() if probed is None else declared_uses(registry, categories, experts, measured=probed)
    requests = None if expected is None else declared_uses(registry, categories, experts, measured=expected)
    by_use = {
        use: np.column_stack([one.expected(use, uses, requests) for one in replays.values()])
        for use in ("active_b", "cost", "latency_ms")
    }
    return RecipeColumns(
        policies,
        written,
        scores[list(rows)],
        np.column_stack([expected_quality(one.answers, one.scores[:, np.newaxis]) for one in replays.values()]),
        Uses(**by_use, calls={name: cost_by_category(one.answers, one.calls) for name, one in replays.items()}),
        left_out,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Probes:
    """The probes of recipes: the prompts `rows` of the quality data of a folder, over experts and categories."""

    folder: Path
    data: Quality
    registry: Registry
    rows: Sequence[int]
    experts: Sequence[str]
    categories: Sequence[str]

    def answer_table(self) -> _AnswerTable:
        """Return the table of the prompts with an answer of every expert."""
        recorded, data = read_answers(self.folder, self.data), self.data
        if recorded is None:
            raise _NotPlannedError("the scores have no recorded answers; run `coe score` again")
        is_complete = recorded.recorded[data.grid(self.rows, self.experts)].all(axis=1)
        prompts: list[int] = np.asarray(self.rows)[is_complete].tolist()
        if len(prompts) < MIN_PROMPTS:
            count = f"answers of all experts are recorded for {len(prompts)} probes"
            raise _NotPlannedError(f"{count}, and {MIN_PROMPTS} are needed")
        specs = [self.registry.expert(name) for name in self.experts]
        cells = data.grid(prompts, self.experts)
        tokens, unknown = recorded.tokens[cells], np.full(data.scores.shape, np.nan)
        given = data.uses.get("input_tokens", unknown)[cells]
        # as `coe.planning.uses.declared_uses` has it, an expert whose input was not counted has the assumed tokens
        assumed = tokens / np.maximum(tokens.mean(axis=0), 1.0) * ASSUMED_OUTPUT_TOKENS
        written = np.where(np.isfinite(given).any(axis=0), tokens, assumed)
        uses = _uses_of(specs, given, written, data.uses.get("latency_ms", unknown)[cells])
        sizes = uses["active_b"] if np.isfinite(uses["active_b"]).all() else 1.0
        costs = uses["cost"] if uses["cost"].any() else tokens / 1000 * sizes
        classes, scores, labels = recorded.classes[cells], data.scores[cells], data.labels(prompts, self.categories)
        answers = Answers(tuple(self.experts), classes, scores, costs, tokens, labels, len(self.categories))
        return _AnswerTable(answers, prompts, cells, uses)

    def judgements(self, recipe: RecipeSpec, table: _AnswerTable) -> Judgements:
        """Return the judgements of a cascade with a judge."""
        assert recipe.judge is not None
        judge = self.registry.expert(recipe.judge)
        grades = read_grades(self.folder, self.data, [judge.name]).get(judge.name)
        cells = self.data.grid(table.prompts, recipe.graded_members)
        command = f"`coe score PROBES --out FOLDER --recipe {recipe.name}` collects them"
        if grades is None:
            raise _NotPlannedError(f"no grades of its judge {judge.name!r}; {command}")
        known = grades.recorded[cells].all(axis=1)
        if not known.all():
            count = f"recorded for {known.sum()} of {len(table.prompts)} probes"
            raise _NotPlannedError(f"grades of its judge {judge.name!r} are {count}; {command}")
        if not np.isfinite(grades.grades[cells]).any():
            raise _NotPlannedError(f"its judge {judge.name!r} gave no grade; a stronger one may")
        given, written, latency = (np.array([[grades.uses[name]]]) for name in MEASURES)
        written = filled(written, GRADE_TOKENS)
        uses = {name: float(use[0, 0]) for name, use in _uses_of([judge], given, written, latency).items()}
        size = uses["active_b"] if np.isfinite(uses["active_b"]) else 1.0
        cost = uses["cost"] if table.uses["cost"].any() else float(written[0, 0]) / 1000 * size
        return Judgements(judge.name, grades.grades[table.cells], cost, uses)

    def written_replay(self, arm: ArmSpec, measured: MeasuredArm, prompts: Sequence[int]) -> _Replay:
        """Return what was measured of a chain or fuse; tokens that were not counted are assumed."""
        scores, labels = (
            self.data.scores[self.data.grid(prompts, self.experts)],
            self.data.labels(prompts, self.categories),
        )
        nothing, classes = np.zeros(scores.shape), np.full(scores.shape, NO_ANSWER, dtype=np.int64)
        answers = Answers(tuple(self.experts), classes, scores, nothing, nothing, labels, len(self.categories))
        given, written, latency = (measured.uses[name][list(prompts)] for name in MEASURES)
        of_each = _uses_of(arm.members, given, filled(written, ASSUMED_OUTPUT_TOKENS), latency)
        members = tuple(dict.fromkeys(one.name for one in arm.members))
        calls = np.array([[one.name == name for one in arm.members] for name in members], dtype=np.float64).sum(axis=1)
        steps = [len(names) for names in arm.steps]
        uses = {use: _of_calls(steps, values, use) for use, values in of_each.items()}
        all_calls = np.tile(calls, (len(prompts), 1))
        return _Replay(answers, prompts, measured.scores[list(prompts)], members, all_calls, uses)


@dataclass(frozen=True, slots=True, eq=False)
class _AnswerTable:
    """Recorded answers of the planned experts to the `prompts`, and what each used, (n_prompts, n_experts), by the
    names of `Uses`. `cells` are the rows and columns of the quality data that they cover."""

    answers: Answers
    prompts: list[int]
    cells: tuple[NDArray[np.int64], ...]
    uses: Mapping[str, Array]

    def replay(self, arm: Arm, judgements: Judgements | None) -> _Replay:
        """Return the scores of an arm by rules that were fitted on other prompts, and the calls of its policy."""
        policy, answers = arm.policy, self.answers
        columns = [answers.experts.index(name) for name in policy.members]
        sizes = [len(step.members) for step in policy.steps]
        grades = None if judgements is None else judgements.grades
        called = replayed(policy, answers, grades=grades).called[:, columns]
        uses = {use: _of_calls(sizes, np.where(called, each[:, columns], 0.0), use) for use, each in self.uses.items()}
        calls = called.astype(np.float64)
        if judgements is not None:
            judged = called[:, np.cumsum([0, *sizes[:-2]])].sum(axis=1)  # after each step but the last
            uses = {use: total + judged * judgements.uses[use] for use, total in uses.items()}
            calls = np.column_stack((calls, judged))
        return _Replay(answers, self.prompts, arm.scores, policy.called, calls, uses)


def _uses_of(experts: Sequence[ExpertSpec], given: Array, written: Array, latency: Array) -> dict[str, Array]:
    """Return what calls used, (n_prompts, n_calls), by the names of `Uses`, from their tokens, their latency and the
    declarations of the experts. NaN is unknown; costs are in US dollars per thousand requests."""
    sizes, times, input_prices, output_prices = np.array(
        [(one.active_parameters_b, one.latency_ms, one.prices.input, one.prices.output) for one in experts],
        dtype=np.float64,  # NaN for None
    ).T
    return {
        "active_b": np.broadcast_to(sizes, written.shape),
        "cost": (filled(given, ASSUMED_INPUT_TOKENS) * input_prices + written * output_prices) / 1000,
        "latency_ms": filled(latency, times),
    }


def _of_calls(steps: Sequence[int], each: Array, use: str) -> Array:
    """Return the use of an arm on each prompt from its calls `each`, (n_prompts, n_calls).

    `steps` are the numbers of members. The use is the sum over calls, but a step waits for its slowest member only.
    """
    if use != "latency_ms":
        return np.asarray(each.sum(axis=1))
    return np.asarray(sum(part.max(axis=1) for part in np.split(each, np.cumsum(steps)[:-1], axis=1)))
