"""What a plan was solved from, kept beside it: to look at, and to solve again under other budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from coe.errors import ArtifactError
from coe.mapping.assignment import Assignment
from coe.mapping.declaration import Dependencies
from coe.mapping.plan import frontiers, marginal_values
from coe.mapping.problem import Array, Budget, Problem, Uses
from coe.mapping.program import TimeBudget
from coe.mapping.score_table import PSEUDO_COUNT, ScoreTable

FILE, TRAFFIC = "plan.json", "traffic.npy"
VALUES = 1 / 3
"""Share of the time for what a plan does without that may be spent on what each expert is worth."""


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """The `problem` that was solved, the `table` that its qualities come from, over the same categories and experts,
    and the sample of posteriors that the prices were fitted to, shape (n_requests, n_categories), None where they are
    for pure categories.

    `deviations` is how many standard errors below the estimate the problem's qualities are; `source` names the origin
    of the scores. `measured` is the part of the table that comes from scores, `learnt` the part from feedback, and
    `moved` names the categories whose expert feedback has changed since the scores were measured.
    `dependencies` are the parts of the declaration that the plan was made for; None where it has none.
    """

    problem: Problem
    table: ScoreTable
    traffic: Array | None
    deviations: float
    source: str
    pseudo_count: float = PSEUDO_COUNT
    measured: ScoreTable | None = None
    learnt: ScoreTable | None = None
    moved: tuple[str, ...] = ()
    dependencies: Dependencies | None = None

    def save(
        self,
        folder: Path,
        plan: Assignment | None = None,
        *,
        values: Mapping[str, float | None] | None = None,
        patience: TimeBudget | None = None,
    ) -> None:
        """Write it, with what other budgets would give and what each expert is worth, into a folder that exists.

        `plan` and its `values`, as of `marginal_values`, are found anew where they are not given. What `patience` is
        not enough for is not written.
        """
        patience = patience or TimeBudget()
        if values is None:
            values = marginal_values(self.problem, plan, patience=patience.part(VALUES))
        others = frontiers(self.problem, plan, patience=patience)
        told = self._told() | {
            "value_of_expert": values,
            "frontiers": {row: [asdict(one) for one in found] for row, found in others.items()},
        }
        (folder / FILE).write_bytes(orjson.dumps(told, option=orjson.OPT_SORT_KEYS))
        if self.traffic is not None:
            np.save(folder / TRAFFIC, self.traffic.astype(np.float16))

    def _told(self) -> dict[str, Any]:
        problem, table = self.problem, self.table
        uses = {name: None if (use := getattr(problem.uses, name)) is None else _plain(use) for name in _uses()}
        return {
            "version": 1,
            "categories": problem.categories,
            "experts": problem.experts,
            "source": self.source,
            "deviations": self.deviations,
            "mean": _plain(table.mean),
            "count": _plain(table.count),
            "estimate": _plain(table.shrunk(pseudo_count=self.pseudo_count)),
            "error": _plain(table.error(pseudo_count=self.pseudo_count)),
            "quality": _plain(problem.quality),
            "weights": _plain(problem.weights),
            "uses": uses,
            "budget": problem.budget.rows(),
            "measured": None if self.measured is None else _cells(self.measured),
            "learnt": None if self.learnt is None else _cells(self.learnt),
            "moved": self.moved,
            "depends_on": None if self.dependencies is None else self.dependencies.to_json(),
        }


def rounded(traffic: NDArray[np.floating]) -> Array:
    """As `save` keeps it, so that solving again gives the same prices."""
    return traffic.astype(np.float16).astype(np.float64)


def read_plan_file(folder: Path) -> dict[str, Any] | None:
    """What `save` wrote beside the assignment; None where nothing was kept. Raises ArtifactError for something else."""
    path = folder / FILE
    try:
        found: dict[str, Any] = orjson.loads(path.read_bytes())
        if found["version"] != 1:
            raise ValueError(f"version {found['version']}, not 1")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); make it again with `coe plan`") from error
    return found


def read_problem(folder: Path) -> tuple[Problem, Array | None] | None:
    """The problem and the traffic of a plan's folder; None where nothing was kept. Raises ArtifactError."""
    if (found := read_plan_file(folder)) is None:
        return None
    try:
        uses = {name: None if use is None else _array(use, np.nan) for name, use in found["uses"].items()}
        problem = Problem(
            categories=tuple(found["categories"]),
            experts=tuple(found["experts"]),
            quality=_array(found["quality"], -np.inf),
            weights=_array(found["weights"], np.nan),
            uses=Uses(**uses),
            budget=Budget(**found["budget"]),
        )
        path = folder / TRAFFIC
        return problem, np.load(path, allow_pickle=False).astype(np.float64) if path.exists() else None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder / FILE}: cannot be read ({error}); make it again with `coe plan`") from error


@dataclass(frozen=True, slots=True, eq=False)
class PlanEvidence:
    """The evidence that a published plan rests on; see `Basis` for the fields."""

    measured: ScoreTable | None = None
    learnt: ScoreTable | None = None
    moved: tuple[str, ...] = ()

    def over(self, categories: Sequence[str], experts: Sequence[str]) -> ScoreTable | None:
        """The feedback over these categories and experts."""
        if self.learnt is None:
            return None
        cells = {name: getattr(self.learnt, name).tolist() for name in ("mean", "variance", "count")}
        return _table(cells, self.learnt.categories, self.learnt.experts, categories, experts)


def read_evidence(folder: Path, *, categories: Sequence[str], experts: Sequence[str]) -> PlanEvidence:
    """Read the evidence of a plan's folder over these categories and experts; one that the plan lacks has no scores.

    Empty where the folder has no plan file. Raises ArtifactError where the file is damaged.
    """
    if (found := read_plan_file(folder)) is None:
        return PlanEvidence()
    try:
        known = tuple(found["categories"]), tuple(found["experts"])
        measured, learnt = (_table(found[name], *known, categories, experts) for name in ("measured", "learnt"))
        return PlanEvidence(measured, learnt, tuple(name for name in found["moved"] if name in categories))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ArtifactError(f"{folder / FILE}: cannot be read ({error!r}); make it again with `coe plan`") from error


def _cells(table: ScoreTable) -> dict[str, list[Any]]:
    return {name: _plain(getattr(table, name)) for name in ("mean", "variance", "count")}


def _table(
    cells: Mapping[str, list[Any]] | None,
    known_categories: Sequence[str],
    known_experts: Sequence[str],
    categories: Sequence[str],
    experts: Sequence[str],
) -> ScoreTable | None:
    """The saved cells as a table over `categories` and `experts`; cells that were not saved have no scores."""
    if cells is None:
        return None
    rows = [known_categories.index(name) if name in known_categories else len(known_categories) for name in categories]
    columns = [known_experts.index(name) if name in known_experts else len(known_experts) for name in experts]

    def aligned(name: str, nothing: float) -> Array:
        saved = _array(cells[name], np.nan if name != "count" else 0.0)
        if saved.shape != (len(known_categories), len(known_experts)):
            raise ValueError(f"{name} of shape {saved.shape}")
        return np.pad(saved, ((0, 1), (0, 1)), constant_values=nothing)[np.ix_(rows, columns)]

    mean, variance, count = aligned("mean", np.nan), aligned("variance", np.nan), aligned("count", 0.0)
    return ScoreTable(tuple(categories), tuple(experts), mean, variance, count)


def _uses() -> list[str]:
    return [field.name for field in fields(Uses)]


def _plain(values: Array) -> list[Any]:
    """Nested lists of numbers, null where a number is not finite."""
    if values.ndim > 1:
        return [_plain(row) for row in values]
    return [float(value) if np.isfinite(value) else None for value in values.tolist()]


def _array(rows: list[Any], nothing: float) -> Array:
    def known(value: Any) -> Any:
        return [known(one) for one in value] if isinstance(value, list) else nothing if value is None else value

    return np.array(known(rows), dtype=np.float64)
