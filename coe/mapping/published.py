"""A published plan: the assignment, and the record of what it was solved from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coe.errors import ArtifactError
from coe.mapping.assignment import Assignment
from coe.mapping.basis import read_plan_file, read_problem
from coe.mapping.dependencies import Dependencies
from coe.mapping.problem import Array, Problem
from coe.registry import Registry

ASSIGNMENT_FILE = "assignment.json"


@dataclass(frozen=True, slots=True, eq=False)
class PlanRecord:
    """What a plan was solved from.

    `bounds`, of the shape of the problem's quality, are the measured qualities as the plan trusts them, in every cell:
    pins are not applied. `dependencies` is None where the plan does not name them.
    """

    problem: Problem
    bounds: Array
    dependencies: Dependencies | None


@dataclass(frozen=True, slots=True, eq=False)
class PublishedPlan:
    """A plan as it was published; `record` is None where only the assignment was kept."""

    version: str
    assignment: Assignment
    record: PlanRecord | None = None


def read_published(folder: Path, version: str) -> PublishedPlan:
    """Read the folder of a plan. Raises ArtifactError where it is something else."""
    assignment = Assignment.from_json((folder / ASSIGNMENT_FILE).read_bytes())
    return PublishedPlan(version, assignment, _read_record(folder))


def pins_then(plan: PublishedPlan, registry: Registry) -> Mapping[str, str]:
    """The pins that the plan was made with; where it does not name them, the declared ones."""
    if plan.record is not None and plan.record.dependencies is not None:
        return plan.record.dependencies.pins
    return registry.assignment


def _read_record(folder: Path) -> PlanRecord | None:
    kept, solved = read_plan_file(folder), read_problem(folder)
    if kept is None or solved is None:
        return None
    try:
        estimate, error = (np.array(kept[name], dtype=np.float64) for name in ("estimate", "error"))
        bounds = np.maximum(estimate - float(kept["deviations"]) * error, 0.0)
        if bounds.shape != solved[0].quality.shape:
            raise ValueError(f"estimates of shape {bounds.shape}")
        named = kept.get("depends_on")
        return PlanRecord(solved[0], bounds, None if named is None else Dependencies.from_json(named))
    except (KeyError, TypeError, ValueError) as problem:
        raise ArtifactError(f"{folder}: plan.json cannot be read ({problem}); make it again with `coe plan`") from None
