"""A published plan with arms of recipes under the present declaration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coe.planning import Plan, effective_plan
from coe.recipes.agreement import AnswerWeights
from coe.recipes.policy import default_policy
from coe.recipes.policy_file import ArmPolicies
from coe.registry import Registry
from tests.fakes import gateway_of, plan_of, registry_of
from tests.recipes.members import plan_with

pytestmark = pytest.mark.anyio
PANEL = {"name": "panel", "vote": ["coder", "painter"]}


def registry(*recipes: dict[str, Any], **changes: Any) -> Registry:
    return registry_of(recipes=list(recipes), assignment={"general": "generalist"}, **changes)


def published(declared: Registry) -> Plan:
    """A plan that sends code to the panel."""
    (recipe,) = declared.declared_recipes
    policy = default_policy(recipe, categories=3)
    steps = tuple(replace(step, weights=_by_category(step.weights)) for step in policy.steps)
    policies = ArmPolicies(declared.category_names, {"panel": replace(policy, steps=steps)})
    found = plan_with("panel", declared, quality=2.0)
    return replace(plan_of(replace(found, choice=("panel", *found.choice[1:])), declared), policies=policies)


def _by_category(weights: AnswerWeights) -> AnswerWeights:
    """Weights with a coefficient for each category, as a fit has them."""
    return AnswerWeights(np.hstack((weights.member, np.zeros((len(weights.member), 3)))), np.zeros(4))


def test_an_unchanged_declaration_gives_the_published_assignment() -> None:
    declared = registry(PANEL)
    plan = published(declared)
    found = effective_plan(plan, declared)
    assert (found.assignment.experts, found.assignment.choice) == (plan.assignment.experts, plan.assignment.choice)
    assert found.assignment.quality.tolist() == plan.assignment.quality.tolist()
    assert found.assignment.price.tolist() == plan.assignment.price.tolist()
    assert found.consequences == ()
    assert set(found.policies.by_arm) == {"panel"}


def test_an_arm_is_dropped_if_its_recipe_is_gone_or_has_other_members() -> None:
    plan = published(registry(PANEL))
    other = {"name": "panel", "vote": ["coder", "generalist"]}
    for changed in (registry(), registry(other)):
        found = effective_plan(plan, changed)
        assert found.assignment.experts == changed.expert_names
        assert found.assignment.choice[0] != "panel"
        assert found.policies.by_arm == {}
        (removed,) = (one for one in found.consequences if one.kind == "recipe_removed")
        assert removed.sentence.startswith("recipe 'panel' of the plan is no longer declared with the same members: ")
        assert removed.replan


@pytest.mark.parametrize(
    ("planned", "declared", "told"),
    [
        (0.1, 0.1, None),
        (0.1, 0.2, None),
        (0.1, None, None),
        (0.1, 0.05, "has max_loss 0.05, and it was planned for max_loss 0.1. Run `coe plan` again"),
        (None, 0.1, "has max_loss 0.1, and it was planned without a bound. Run"),
    ],
)
def test_a_bound_that_the_plan_did_not_test_is_reported(
    planned: float | None, declared: float | None, told: str | None
) -> None:
    careful = {"name": "careful", "cascade": ["coder", "generalist"]}
    then, now = (registry(careful | {"max_loss": bound}) for bound in (planned, declared))
    policy = default_policy(then.declared_recipes[0], categories=3)
    steps = tuple(replace(step, weights=_by_category(step.weights)) for step in policy.steps)
    policies = ArmPolicies(then.category_names, {"careful": replace(policy, steps=steps, max_loss=planned)})
    plan = replace(plan_of(plan_with("careful", then, quality=2.0), then), policies=policies)
    found = effective_plan(plan, now)
    assert "careful" in found.assignment.experts
    changed = [one for one in found.consequences if one.kind == "recipe_bound_changed"]
    assert [(one.name, one.replan) for one in changed] == ([] if told is None else [("careful", True)])
    assert told is None or told in changed[0].sentence


def test_a_recipe_that_the_plan_lacks_is_reported_and_is_no_column() -> None:
    new = {"name": "careful", "cascade": ["coder", "generalist"]}
    declared = registry(PANEL, new)
    found = effective_plan(published(registry(PANEL)), declared)
    assert found.assignment.experts == (*declared.expert_names, "panel")
    assert found.assignment.unmeasured is None
    assert [(one.kind, one.name) for one in found.consequences][:1] == [("recipe_added", "careful")]


async def test_the_map_shows_arms_beside_experts() -> None:
    declared = registry(PANEL)
    async with gateway_of(declared, assignment=published(declared).assignment) as gateway:
        shown = await gateway.post("/v1/map", method="GET")
        assert shown.status == 200
        assert shown.json["experts"] == [*declared.expert_names, "panel"]
        assert shown.json["assignment"][0]["expert"] == "panel"
