"""The files of a plan: assignment.json, residual.npz (or measured.npz), plan.json (inputs, evidence, values of experts)
and traffic.npy.

`coe plan` and `coe retrain` write `PlanInputs`. The files are read to show a plan, to solve it again under another
budget, and to compare it with the current declaration. `PublishedPlan` is a plan that was read; `current_problem`
applies the current declaration to its problem.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from coe.errors import ArtifactError, DataError
from coe.planning.assignment import Assignment
from coe.planning.plan import marginal_values
from coe.planning.problem import MEAN_ROWS, USE_OF_ROW, Array, Budget, Dependencies, Problem
from coe.planning.residual import Residual
from coe.planning.score_table import PSEUDO_COUNT, ScoreTable
from coe.planning.uses import MeasuredUses, Uses, declared_uses
from coe.recipes.policy_file import RECIPES_FILE, ArmPolicies
from coe.registry import Registry

PLAN_FILE, TRAFFIC_FILE = "plan.json", "traffic.npy"
VERSION = 3
"""Version of plan.json."""
MIN_PAIRED = 10
"""Prompts that a paired error needs."""


@dataclass(frozen=True, slots=True, eq=False)
class PlanInputs:
    """The data that a plan is solved from.

    - `problem`: the planning problem, and `table`: the scores behind its qualities, over the same names.
    - `traffic`: the sample of posteriors that the prices are fitted to, shape (n_requests, n_categories); None for
      prices of pure categories.
    - `deviations`: number of standard errors by which the problem's qualities are below the estimates.
    - `source`: origin of the scores.
    - `measured`, `feedback`: the parts of the table from scores and from feedback.
    - `measured_uses`: tokens and latencies behind the problem's uses; None if nothing was measured.
    - `reassigned`: categories whose expert feedback has changed since the scores were measured.
    - `prompt_scores`: the category (index) and the scores of each prompt, (n_prompts,) and (n_prompts, n_experts), for
      paired errors; None if they are unknown.
    - `prompts`: the id and the text of each prompt of `prompt_scores`.
    - `dependencies`: the part of the declaration that the plan was made for; None if it was made without one.
    - `unused`: the measured prompts as a residual that is not used, which retraining may fit again; None if the plan
      has a residual.
    """

    problem: Problem
    table: ScoreTable
    traffic: Array | None
    deviations: float
    source: str
    pseudo_count: float = PSEUDO_COUNT
    measured: ScoreTable | None = None
    feedback: ScoreTable | None = None
    reassigned: tuple[str, ...] = ()
    dependencies: Dependencies | None = None
    measured_uses: MeasuredUses | None = None
    prompt_scores: tuple[NDArray[np.int64], Array] | None = None
    prompts: Sequence[tuple[str, str]] = ()
    unused: Residual | None = None

    def save(
        self,
        folder: Path,
        plan: Assignment | None = None,
        *,
        values: Mapping[str, float | None] | None = None,
        against: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Write the files into an existing folder, with the marginal values of experts.

        `plan` and its `values` (see `marginal_values`) are calculated unless given. `against` compares the plan with
        single experts, for `coe report`.
        """
        if values is None:
            values = marginal_values(self.problem, plan)
        data = self._to_json() | {
            "value_of_expert": values,
            "against": against,
        }
        # orjson writes null for a number that is not finite
        (folder / PLAN_FILE).write_bytes(orjson.dumps(data, option=orjson.OPT_SORT_KEYS))
        if self.traffic is not None:
            np.save(folder / TRAFFIC_FILE, self.traffic.astype(np.float16))
        if self.unused is not None:
            (folder / MEASURED_FILE).write_bytes(self.unused.to_bytes())

    def paired_error(self, plan: Assignment) -> list[list[float]] | None:
        """Standard error, by category and expert, of its mean score less that of the chosen expert, on the prompts that
        both answered; NaN if they are too few.

        It is that of the plain means; the estimates of the plan are shrunk, so their difference varies less. A cell's
        variance is shrunk towards that of the expert's differences in all categories, as `pseudo_count` prompts. NaN
        too where no score differs in any category: the prompts do not show that the experts are equal.
        """
        if self.prompt_scores is None:
            return None
        labels, scores = self.prompt_scores
        shape = len(plan.categories), scores.shape[1]
        squares, count, own = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=bool)
        for row, name in enumerate(plan.choice):
            chosen = self.problem.experts.index(name)
            cell = scores[labels == self.problem.categories.index(plan.categories[row])]
            differences = cell - cell[:, [chosen]]
            own[row, chosen], count[row] = True, np.isfinite(differences).sum(axis=0)
            mean = np.nansum(differences, axis=0) / np.maximum(count[row], 1)
            squares[row] = np.nansum((differences - mean) ** 2, axis=0)
        free = np.where(own, 0.0, np.maximum(count - 1, 0.0)).sum(axis=0)
        pooled = squares.sum(axis=0) / np.maximum(free, 1.0)
        size = np.maximum(count, 1.0)
        variance = (squares + pooled * self.pseudo_count) / (size + self.pseudo_count) / size
        known = (count >= MIN_PAIRED) & (pooled > 0)
        found: list[list[float]] = np.where(own, 0.0, np.where(known, np.sqrt(variance), np.nan)).tolist()
        return found

    def _to_json(self) -> dict[str, Any]:
        problem, table = self.problem, self.table
        measured = self.measured_uses and self.measured_uses.over(problem.categories, problem.experts)
        return {
            "version": VERSION,
            "categories": problem.categories,
            "experts": problem.experts,
            "source": self.source,
            "deviations": self.deviations,
            "mean": table.mean.tolist(),
            "count": table.count.tolist(),
            "estimate": table.shrunk(pseudo_count=self.pseudo_count).tolist(),
            "error": table.error(pseudo_count=self.pseudo_count).tolist(),
            "quality": problem.quality.tolist(),
            "weights": problem.weights.tolist(),
            "uses": _uses_to_json(problem.uses),
            "members": dict(problem.members),
            "measured_uses": None if measured is None else measured.to_json(),
            "budget": problem.budget.rows(),
            "measured": None if self.measured is None else _table_to_json(self.measured),
            "feedback": None if self.feedback is None else _table_to_json(self.feedback),
            "reassigned": self.reassigned,
            "depends_on": None if self.dependencies is None else self.dependencies.to_json(),
        }


def round_traffic(traffic: NDArray[np.floating]) -> Array:
    """Round to the precision of the saved file, so that solving again gives the same prices."""
    return traffic.astype(np.float16).astype(np.float64)


def read_plan_file(folder: Path) -> dict[str, Any] | None:
    """Return the content of plan.json; None if there is no such file. Raises ArtifactError if it cannot be read."""
    with _reading(folder):
        try:
            found: dict[str, Any] = orjson.loads((folder / PLAN_FILE).read_bytes())
        except FileNotFoundError:
            return None
        if found["version"] != VERSION:
            raise ValueError(f"version {found['version']}, not {VERSION}")
        return found


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Raise ArtifactError for an error that the content of a plan's folder causes."""
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ArtifactError(f"{folder / PLAN_FILE}: cannot be read ({error}); make it again with `coe plan`") from error


def read_problem(folder: Path) -> tuple[Problem, Array | None] | None:
    """Return the problem and the traffic of a plan's folder; None without plan.json. Raises ArtifactError."""
    found = read_plan_file(folder)
    return None if found is None else _problem_from(found, folder)


def _problem_from(found: Mapping[str, Any], folder: Path) -> tuple[Problem, Array | None]:
    with _reading(folder):
        problem = Problem(
            categories=tuple(found["categories"]),
            experts=tuple(found["experts"]),
            quality=_array(found["quality"], -np.inf),
            weights=_array(found["weights"], np.nan),
            uses=_uses_from_json(found["uses"]),
            budget=Budget(**found["budget"]),
            members={arm: tuple(members) for arm, members in found["members"].items()},
        )
        path = folder / TRAFFIC_FILE
        return problem, np.load(path, allow_pickle=False).astype(np.float64) if path.exists() else None


@dataclass(frozen=True, slots=True, eq=False)
class PlanEvidence:
    """The scores and feedback behind a published plan; see `PlanInputs`."""

    measured: ScoreTable | None = None
    feedback: ScoreTable | None = None
    reassigned: tuple[str, ...] = ()
    measured_uses: MeasuredUses | None = None


def read_evidence(folder: Path, *, categories: Sequence[str], experts: Sequence[str]) -> PlanEvidence:
    """Read a plan's evidence over these categories and experts; names that the plan lacks have no scores.

    Returns empty evidence without plan.json. Raises ArtifactError if the file is damaged.
    """
    if (found := read_plan_file(folder)) is None:
        return PlanEvidence()
    with _reading(folder):
        known = tuple(found["categories"]), tuple(found["experts"])
        tables = (_table_from_json(found[name], *known) for name in ("measured", "feedback"))
        measured, feedback = (None if table is None else table.over(categories, experts) for table in tables)
        reassigned = tuple(name for name in found["reassigned"] if name in categories)
        return PlanEvidence(measured, feedback, reassigned, MeasuredUses.from_json(found["measured_uses"], *known))


def _table_to_json(table: ScoreTable) -> dict[str, list[Any]]:
    return {name: getattr(table, name).tolist() for name in ("mean", "variance", "count")}


def _table_from_json(
    cells: Mapping[str, list[Any]] | None, categories: tuple[str, ...], experts: tuple[str, ...]
) -> ScoreTable | None:
    if cells is None:
        return None
    mean, variance, count = _array(cells["mean"], np.nan), _array(cells["variance"], np.nan), _array(cells["count"], 0)
    if {table.shape for table in (mean, variance, count)} != {(len(categories), len(experts))}:
        raise ValueError(f"scores of shape {mean.shape}")
    return ScoreTable(categories, experts, mean, variance, count)


def _uses_to_json(uses: Uses) -> dict[str, Any]:
    arrays = {name: getattr(uses, name) for name in USE_OF_ROW.values()}
    found: dict[str, Any] = {name: None if use is None else use.tolist() for name, use in arrays.items()}
    return found | {"calls": {arm: calls.tolist() for arm, calls in uses.calls.items()}}


def _uses_from_json(found: Mapping[str, Any]) -> Uses:
    arrays = {name: None if (use := found[name]) is None else _array(use, np.nan) for name in USE_OF_ROW.values()}
    return Uses(**arrays, calls={arm: _array(calls, np.nan) for arm, calls in found["calls"].items()})


def _array(rows: list[Any], missing: float) -> Array:
    """Return the array of nested lists, with `missing` for None."""
    values = np.array(rows, dtype=np.float64)
    return np.where(np.isnan(values), missing, values)


ASSIGNMENT_FILE, RESIDUAL_FILE, MEASURED_FILE = "assignment.json", "residual.npz", "measured.npz"


def save_assignment(folder: Path, assignment: Assignment) -> None:
    """Write the assignment and its residual, if it has one, into an existing folder."""
    (folder / ASSIGNMENT_FILE).write_bytes(assignment.to_json())
    if assignment.residual is not None:
        (folder / RESIDUAL_FILE).write_bytes(assignment.residual.to_bytes())


def read_unused(folder: Path) -> Residual | None:
    """Return the residual that a plan does not use. Raises ArtifactError."""
    path = folder / MEASURED_FILE
    return Residual.from_bytes(path.read_bytes()) if path.exists() else None


@dataclass(frozen=True, slots=True, eq=False)
class PlanRecord:
    """The inputs of a published plan.

    `bounds`, of the shape of the problem's quality, are the lower confidence bounds of all cells, also of those that a
    pin excludes. `dependencies` is None if the plan does not store them, and `measured_uses` if nothing was measured.
    """

    problem: Problem
    bounds: Array
    dependencies: Dependencies | None
    measured_uses: MeasuredUses | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PublishedPlan:
    """A plan as it was published; `record` is None if only the assignment was stored, `policies` if it has no recipe's
    arm."""

    version: str
    assignment: Assignment
    record: PlanRecord | None = None
    policies: ArmPolicies | None = None

    def uses(self, registry: Registry, categories: Sequence[str], columns: Sequence[str] | None = None) -> Uses:
        """Return the uses of `columns` (default: all declared experts; arms come last).

        Those of experts follow from the declaration and the measured tokens, those of arms are the planned ones.
        """
        measured = None if self.record is None else self.record.measured_uses
        experts = [name for name in columns or registry.expert_names if name in registry.expert_names]
        present = declared_uses(registry, categories, experts, measured=measured)
        arms = list(columns or ())[len(experts) :]
        planned = Uses() if self.record is None else _planned_uses(self.record.problem, categories, arms)
        return present.joined(planned, len(arms))

    def declaration(self, registry: Registry) -> Registry:
        """Return the declaration with the recipes that this plan proposed."""
        return registry if self.policies is None else registry.with_proposed(self.policies.steps)

    def arms(self, registry: Registry) -> tuple[str, ...]:
        """Return the arms of declared recipes that the plan has a column for, with the same steps.

        The columns of chains and fuses follow the others, as in the columns of a plan.
        """
        if self.policies is None:
            return ()
        columns, policies = self.assignment.experts, self.policies
        found = [arm.name for arm in registry.recipe_arms if arm.name in columns and policies.has(arm)]
        return tuple(sorted(found, key=lambda name: name in policies.written))


def read_published(folder: Path, version: str) -> PublishedPlan:
    """Read the folder of a plan. Raises ArtifactError."""
    assignment = Assignment.from_json((folder / ASSIGNMENT_FILE).read_bytes())
    if (residual := folder / RESIDUAL_FILE).exists():
        assignment = replace(assignment, residual=Residual.from_bytes(residual.read_bytes()))
    recipes = folder / RECIPES_FILE
    policies = ArmPolicies.from_json(recipes.read_bytes()) if recipes.exists() else None
    return PublishedPlan(version, assignment, _read_record(folder), policies)


def _read_record(folder: Path) -> PlanRecord | None:
    if (data := read_plan_file(folder)) is None:
        return None
    problem, _ = _problem_from(data, folder)
    with _reading(folder):
        estimate, error = (np.array(data[name], dtype=np.float64) for name in ("estimate", "error"))
        bounds = np.maximum(estimate - float(data["deviations"]) * error, 0.0)
        if bounds.shape != problem.quality.shape:
            raise ValueError(f"estimates of shape {bounds.shape}")
        stored = data["depends_on"]
        dependencies = None if stored is None else Dependencies.from_json(stored)
        uses = MeasuredUses.from_json(data["measured_uses"], problem.categories, problem.experts)
        return PlanRecord(problem, bounds, dependencies, uses)


def planned_pins(plan: PublishedPlan, registry: Registry) -> Mapping[str, str]:
    """Return the pins that the plan was made with, or the declared ones if it does not store them."""
    if plan.record is not None and plan.record.dependencies is not None:
        return plan.record.dependencies.pins
    return registry.assignment


def current_problem(
    plan: PublishedPlan, registry: Registry, traffic: Array | None = None
) -> tuple[Problem, Array | None] | None:
    """Return the plan's problem and traffic over the names still declared; None if the plan has no record.

    Pins and uses are the declared ones, the budget is the plan's. A category that is pinned to an expert without scores
    is left out. Raises DataError if no category is left.
    """
    record = plan.record
    if record is None:
        return None
    solved, pins, then = record.problem, registry.assignment, planned_pins(plan, registry)
    missing = set(solved.experts) - set(registry.expert_names) - set(plan.arms(registry))
    missing |= {arm for arm, members in solved.members.items() if missing & set(members)}
    columns = [column for column, name in enumerate(solved.experts) if name not in missing]
    experts = tuple(solved.experts[column] for column in columns)
    rows = [
        row
        for row, name in enumerate(solved.categories)
        if name in registry.category_names and pins.get(name, experts[0] if experts else "") in experts
    ]
    if not rows:
        raise DataError(f"plan {plan.version}: none of its categories is declared any more; run `coe plan` again")
    quality = np.stack([_quality_row(record, row, pins, then)[columns] for row in rows])
    categories, weights = tuple(solved.categories[row] for row in rows), solved.weights[rows]
    problem = replace(
        solved,
        categories=categories,
        experts=experts,
        quality=quality,
        weights=weights / weights.sum() if len(rows) < len(solved.categories) else weights,
        uses=plan.uses(registry, categories, experts),
        members={arm: members for arm, members in solved.members.items() if arm in experts},
    )
    return problem, None if traffic is None else traffic[:, rows]


def _planned_uses(planned: Problem, categories: Sequence[str], arms: Sequence[str]) -> Uses:
    """Return the planned uses of arms; a category that the plan lacks has their mean."""
    rows = [planned.categories.index(name) if name in planned.categories else None for name in categories]
    columns = [planned.experts.index(name) for name in arms]

    def by_category(values: Array) -> Array:
        return np.stack([values.mean(axis=0) if row is None else values[row] for row in rows])

    then = {row: getattr(planned.uses, USE_OF_ROW[row]) for row in MEAN_ROWS}
    uses = {USE_OF_ROW[row]: None if use is None else by_category(use[:, columns]) for row, use in then.items()}
    calls = {arm: by_category(planned.uses.calls[arm]) for arm in arms if arm in planned.uses.calls}
    return Uses(**uses, calls=calls)


def _quality_row(record: PlanRecord, row: int, pins: Mapping[str, str], then: Mapping[str, str]) -> Array:
    """Return the qualities of a category under the current pins; `then` are the plan's."""
    name, experts = record.problem.categories[row], record.problem.experts
    pin = pins.get(name)
    if pin == then.get(name):
        return np.asarray(record.problem.quality[row])
    if pin is None:
        return np.asarray(record.bounds[row])
    return np.where(np.array(experts) == pin, record.bounds[row], -np.inf)


def common_part(problem: Problem, effective: Assignment) -> tuple[Problem, Assignment]:
    """Restrict a problem and the effective assignment to their common categories, with an expert that both have."""
    choice = dict(zip(effective.categories, effective.choice, strict=True))
    rows = [row for row, name in enumerate(problem.categories) if choice.get(name) in problem.experts]
    categories = tuple(problem.categories[row] for row in rows)
    weights = problem.weights[rows]
    part = replace(
        problem,
        categories=categories,
        quality=problem.quality[rows],
        weights=weights / weights.sum(),
        uses=problem.uses.part(rows, range(len(problem.experts))),
    )
    hosted = tuple(name for name in effective.hosted if name in problem.experts)
    return part, replace(effective.over(categories), hosted=hosted)
