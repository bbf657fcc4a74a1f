"""The category-to-expert mapping: the assignment that `decide()` follows and the exact plan that finds it."""

from coe.mapping.assignment import Assignment, decision_risk, expected_utility
from coe.mapping.basis import VALUES, Basis, PlanEvidence, read_evidence, read_plan_file, read_problem, rounded
from coe.mapping.consequences import Consequence
from coe.mapping.declaration import ANSWER_FIELDS, Dependencies, declared_uses
from coe.mapping.effect import PlanInEffect, plan_in_effect
from coe.mapping.plan import (
    ParetoRow,
    frontiers,
    marginal_values,
    planned_quality,
    planned_use,
    routed_use,
    solve,
    sweep,
)
from coe.mapping.problem import Budget, Problem, Uses
from coe.mapping.program import TimeBudget, least
from coe.mapping.published import PlanRecord, PublishedPlan, comparable, present_problem, read_published

__all__ = [
    "ANSWER_FIELDS",
    "VALUES",
    "Assignment",
    "Basis",
    "Budget",
    "Consequence",
    "Dependencies",
    "ParetoRow",
    "PlanEvidence",
    "PlanInEffect",
    "PlanRecord",
    "Problem",
    "PublishedPlan",
    "TimeBudget",
    "Uses",
    "comparable",
    "decision_risk",
    "declared_uses",
    "expected_utility",
    "frontiers",
    "least",
    "marginal_values",
    "plan_in_effect",
    "planned_quality",
    "planned_use",
    "present_problem",
    "read_evidence",
    "read_plan_file",
    "read_problem",
    "read_published",
    "rounded",
    "routed_use",
    "solve",
    "sweep",
]
