"""The category-to-expert mapping: the assignment that `decide()` follows and the exact plan that finds it."""

from coe.mapping.assignment import (
    Assignment,
    expected_price,
    expected_utility,
    information_value,
    routing_gain,
)
from coe.mapping.consequences import Consequence
from coe.mapping.effective_plan import EffectivePlan, effective_plan
from coe.mapping.plan import (
    ParetoRow,
    best_choice,
    frontiers,
    marginal_values,
    planned_quality,
    planned_use,
    routed_use,
    solve,
    sweep,
)
from coe.mapping.plan_file import (
    MARGINAL_VALUES_TIME_SHARE,
    PlanEvidence,
    PlanInputs,
    PlanRecord,
    PublishedPlan,
    common_part,
    current_problem,
    read_evidence,
    read_plan_file,
    read_problem,
    read_published,
    round_traffic,
)
from coe.mapping.problem import ANSWER_FIELDS, Budget, Dependencies, Problem, changed_fields
from coe.mapping.program import TimeBudget, smallest_limit
from coe.mapping.uses import LOGGED_MEASURES, MEASURES, MeasuredUses, Uses, declared_uses

__all__ = [
    "ANSWER_FIELDS",
    "LOGGED_MEASURES",
    "MARGINAL_VALUES_TIME_SHARE",
    "MEASURES",
    "Assignment",
    "Budget",
    "Consequence",
    "Dependencies",
    "EffectivePlan",
    "MeasuredUses",
    "ParetoRow",
    "PlanEvidence",
    "PlanInputs",
    "PlanRecord",
    "Problem",
    "PublishedPlan",
    "TimeBudget",
    "Uses",
    "best_choice",
    "changed_fields",
    "common_part",
    "current_problem",
    "declared_uses",
    "effective_plan",
    "expected_price",
    "expected_utility",
    "frontiers",
    "information_value",
    "marginal_values",
    "planned_quality",
    "planned_use",
    "read_evidence",
    "read_plan_file",
    "read_problem",
    "read_published",
    "round_traffic",
    "routed_use",
    "routing_gain",
    "smallest_limit",
    "solve",
    "sweep",
]
