"""The category-to-expert mapping: the assignment that `decide()` follows and the exact plan that finds it."""

from coe.mapping.assignment import Assignment, expected
from coe.mapping.plan import ParetoRow, marginal_values, planned_quality, planned_use, solve, sweep
from coe.mapping.problem import Budget, Problem, Uses

__all__ = [
    "Assignment",
    "Budget",
    "ParetoRow",
    "Problem",
    "Uses",
    "expected",
    "marginal_values",
    "planned_quality",
    "planned_use",
    "solve",
    "sweep",
]
