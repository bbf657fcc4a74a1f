"""A published plan with arms of recipes under the present declaration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coe.planning.plan import Plan, effective_plan
from coe.recipes.agreement import AnswerWeights
from coe.recipes.policy import ArmPolicies, default_policy
from coe.registry import Registry
from tests.fakes import plan_of, registry_of
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
        assert removed.sentence.startswith("recipe 'panel' is not declared as it was planned: ")
        assert removed.replan
