"""A plan as `coe plan` and `coe retrain` publish it: the assignment, and all that it was solved from.

It is read whole: to route by it, to show it, to solve it again under another budget, and to compare it with the current
declaration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import Field, InstanceOf, TypeAdapter

from coe.errors import ArtifactError, DataError
from coe.planning.assignment import Assignment
from coe.planning.grid import Array
from coe.planning.problem import Problem
from coe.planning.residual import Residual
from coe.planning.score_table import PSEUDO_COUNT, ScoreTable
from coe.planning.uses import MeasuredUses
from coe.recipes.policy_file import NO_POLICIES, RECIPES_FILE, ArmPolicies
from coe.registry import Registry

PLAN_FILE, TRAFFIC_FILE = "plan.json", "traffic.npy"
RESIDUAL_FILE, MEASURED_FILE = "residual.npz", "measured.npz"
ANSWER_FIELDS = ("model", "runtime", "base_url", "base_urls", "adapter", "system_prompt", "parameters", "options")
"""Fields of an expert that affect its answers, and so its measured quality."""
PLANNED_FIELDS = (*ANSWER_FIELDS, "prices", "active_parameters_b", "latency_ms", "memory_gb")
"""Fields of an expert that a plan depends on."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """An assignment and its origin.

    - `problem`: the planning problem, and `table`: the scores behind its qualities, over the same names.
    - `source`: origin of the scores.
    - `deviations`: number of standard errors by which the problem's qualities are below the estimates, which are shrunk
      by `pseudo_count`.
    - `measured`, `feedback`: the parts of the table from scores and from feedback.
    - `reassigned`: categories whose expert feedback has changed since the scores were measured.
    - `measured_uses`: tokens and latencies behind the problem's uses.
    - `pins`, `declared`: the pins and the `declared_digests` of the declaration that the plan was made for.
    - `value_of_expert`: see `marginal_values`. `against` compares the plan with single experts, for `coe report`.
    - `traffic`: the sample of posteriors that the prices are fitted to, shape (n_requests, n_categories); None for
      prices of pure categories.
    - `unused`: the measured prompts as a residual that is not used, which retraining may fit again.
    - `policies`: the arms of recipes among the columns.
    """

    assignment: Assignment
    problem: Problem
    table: ScoreTable
    source: str
    deviations: float = 0.0
    pseudo_count: float = PSEUDO_COUNT
    measured: ScoreTable | None = None
    feedback: ScoreTable | None = None
    reassigned: tuple[str, ...] = ()
    measured_uses: MeasuredUses = field(default_factory=MeasuredUses.nothing)
    pins: Mapping[str, str] = field(default_factory=dict)
    declared: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    value_of_expert: Mapping[str, float | None] = field(default_factory=dict)
    against: tuple[dict[str, Any], ...] = ()
    traffic: Annotated[Array | None, Field(exclude=True)] = None
    unused: Annotated[InstanceOf[Residual] | None, Field(exclude=True)] = None
    policies: Annotated[InstanceOf[ArmPolicies], Field(exclude=True)] = NO_POLICIES
    format: Literal[1] = 1

    def __post_init__(self) -> None:
        shape = self.problem.quality.shape
        if not self.table.count.shape == self.assignment.quality.shape == shape:
            raise DataError(f"scores of shape {self.table.count.shape}, not {shape}")

    @property
    def estimate(self) -> Array:
        """The estimated qualities, by category and expert."""
        return self.table.shrunk(pseudo_count=self.pseudo_count)

    def arms(self, registry: Registry) -> tuple[str, ...]:
        """Return the arms of recipes that are declared as the plan has them: with the same steps, and no smaller bound.

        The columns of chains and fuses follow the others, as in the columns of a plan.
        """
        columns, policies = self.assignment.experts, self.policies
        bounds = {recipe.name: recipe.max_loss for recipe in registry.declared_recipes}
        found = list[str]()
        for arm in registry.recipe_arms:
            if arm.name in columns and policies.has(arm):
                bound, fitted = bounds[arm.name], policies.by_arm.get(arm.name)
                tested = None if fitted is None else fitted.max_loss
                if bound is None or (tested is not None and tested <= bound):
                    found.append(arm.name)
        return tuple(sorted(found, key=lambda name: name in policies.written))

    def save(self, folder: Path) -> None:
        """Write the files into an existing folder."""
        (folder / PLAN_FILE).write_bytes(_JSON.dump_json(self))
        for name, residual in ((RESIDUAL_FILE, self.assignment.residual), (MEASURED_FILE, self.unused)):
            if residual is not None:
                (folder / name).write_bytes(residual.to_bytes())
        if self.traffic is not None:
            np.save(folder / TRAFFIC_FILE, self.traffic.astype(np.float16))
        if self.policies.steps:
            (folder / RECIPES_FILE).write_bytes(self.policies.to_json())

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """Read the files that `save` writes. Raises ArtifactError."""
        traffic, recipes = folder / TRAFFIC_FILE, folder / RECIPES_FILE
        try:
            plan = _JSON.validate_json((folder / PLAN_FILE).read_bytes())
            plan = replace(plan, traffic=np.load(traffic).astype(np.float64) if traffic.exists() else None)
        except (OSError, TypeError, ValueError, DataError) as error:  # pydantic's error is a ValueError
            remedy = "make it again with `coe plan`"
            raise ArtifactError(f"{folder / PLAN_FILE}: cannot be read ({error}); {remedy}") from None
        files = folder / RESIDUAL_FILE, folder / MEASURED_FILE
        residual, unused = (Residual.from_bytes(one.read_bytes()) if one.exists() else None for one in files)
        policies = ArmPolicies.from_json(recipes.read_bytes()) if recipes.exists() else NO_POLICIES
        return replace(plan, assignment=replace(plan.assignment, residual=residual), unused=unused, policies=policies)


_JSON = TypeAdapter(Plan)


def round_traffic(traffic: NDArray[np.floating]) -> Array:
    """Round to the precision of the saved file, so that solving again gives the same prices."""
    return traffic.astype(np.float16).astype(np.float64)


def declared_digests(registry: Registry) -> dict[str, dict[str, str]]:
    """Return by expert digests of its PLANNED_FIELDS, so that no secret is stored."""
    values = {spec.name: spec.model_dump(mode="json", include=set(PLANNED_FIELDS)) for spec in registry.experts}
    return {
        expert: {
            name: hashlib.sha256(orjson.dumps(fields[name], option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]
            for name in PLANNED_FIELDS
        }
        for expert, fields in values.items()
    }
