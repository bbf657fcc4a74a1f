"""The category-to-expert mapping: the assignment that `decide()` follows and the exact plan that finds it."""

from coe.planning.assignment import (
    Assignment,
    apply_residual,
    expected_price,
    expected_utility,
    information_value,
    residual_gain,
    routing_gain,
)
from coe.planning.effective_plan import Consequence, EffectivePlan, effective_plan
from coe.planning.plan import ANSWER_FIELDS, Plan, declared_digests, round_traffic
from coe.planning.problem import Problem
from coe.planning.program import smallest_limit
from coe.planning.solver import (
    best_choice,
    marginal_values,
    planned_quality,
    planned_use,
    solve,
)
from coe.planning.uses import LOGGED_MEASURES, MEASURES, MeasuredUses, Uses, declared_uses

__all__ = [
    "ANSWER_FIELDS",
    "LOGGED_MEASURES",
    "MEASURES",
    "Assignment",
    "Consequence",
    "EffectivePlan",
    "MeasuredUses",
    "Plan",
    "Problem",
    "Uses",
    "apply_residual",
    "best_choice",
    "declared_digests",
    "declared_uses",
    "effective_plan",
    "expected_price",
    "expected_utility",
    "information_value",
    "marginal_values",
    "planned_quality",
    "planned_use",
    "residual_gain",
    "round_traffic",
    "routing_gain",
    "smallest_limit",
    "solve",
]
