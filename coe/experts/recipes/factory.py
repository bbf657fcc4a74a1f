"""Builds the arms of the declared recipes over the experts."""

from __future__ import annotations

from collections.abc import Mapping

from coe.core import Expert
from coe.experts.recipes.expert import RecipeExpert
from coe.experts.recipes.final_answers.answers import final_answer
from coe.experts.recipes.policy import RecipePolicy, default_policy
from coe.experts.recipes.writing.expert import WritingExpert
from coe.registry import Registry
from coe.registry.recipes import RecipeSpec, cap_in_force


def build_recipes(
    registry: Registry,
    experts: Mapping[str, Expert],
    *,
    categories: int,
    policies: Mapping[str, RecipePolicy] | None = None,
) -> dict[str, RecipeExpert | WritingExpert]:
    """Return every arm of the declared recipes by name, over `experts`.

    `policies` are the fitted policies by arm, over posteriors of `categories` categories; an arm without one gets the
    default policy of its recipe.
    """
    fitted = policies or {}
    arms: dict[str, RecipeExpert | WritingExpert] = {}
    for recipe in registry.declared_recipes:
        if recipe.writes:
            arms[recipe.arm(1)] = writing_expert(registry, recipe, experts)
            continue
        for level in range(1, recipe.levels + 1):
            name = recipe.arm(level)
            policy = _fitted_policy(fitted, recipe, level) or default_policy(recipe, categories=categories)
            arms[name] = RecipeExpert(
                name,
                experts,
                policy=_with_caps_in_force(policy, registry),
                categories=categories,
                final_answer=final_answer,
                limits=registry.policy,
                audit_rate=recipe.audit_probability,
            )
    return arms


def writing_expert(registry: Registry, recipe: RecipeSpec, experts: Mapping[str, Expert]) -> WritingExpert:
    """Return the arm of a chain or fuse over `experts`, which has at least its members."""
    declared = {name: registry.expert(name) for name in recipe.members}
    return WritingExpert(recipe, experts, declared=declared, limits=registry.policy)


def _fitted_policy(fitted: Mapping[str, RecipePolicy], recipe: RecipeSpec, level: int) -> RecipePolicy | None:
    """Return the policy of a level, or of the next safer one: `max_loss` may have ruled out the cheaper ones."""
    safer = (fitted.get(recipe.arm(one)) for one in range(level, recipe.levels + 1))
    return next((policy for policy in safer if policy is not None), None)


def _with_caps_in_force(policy: RecipePolicy, registry: Registry) -> RecipePolicy:
    """Return the policy with caps no higher than the limits that its members declare. A proposed recipe may have been
    fitted before they were declared, and a cap replaces the declared limit in a request."""
    return policy.with_caps({name: cap_in_force(cap, registry.expert(name)) for name, cap in policy.max_tokens.items()})
