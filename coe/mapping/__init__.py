"""The category-to-expert mapping: the assignment that `decide()` follows and the exact plan that finds it."""

from coe.mapping.assignment import Assignment, expected
from coe.mapping.basis import VALUES, Basis, PlanEvidence, read_evidence, read_plan_file, read_problem, rounded
from coe.mapping.patience import Patience
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
from coe.mapping.program import least
from coe.mapping.stakes import stake

__all__ = [
    "VALUES",
    "Assignment",
    "Basis",
    "Budget",
    "ParetoRow",
    "Patience",
    "PlanEvidence",
    "Problem",
    "Uses",
    "expected",
    "frontiers",
    "least",
    "marginal_values",
    "planned_quality",
    "planned_use",
    "read_evidence",
    "read_plan_file",
    "read_problem",
    "rounded",
    "routed_use",
    "solve",
    "stake",
    "sweep",
]
