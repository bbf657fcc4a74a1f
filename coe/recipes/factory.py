"""Builds the arms of the declared recipes over the experts."""

from __future__ import annotations

from collections.abc import Mapping

from coe.core import Expert
from coe.recipes.expert import RecipeExpert
from coe.recipes.final_answers.answers import final_answer
from coe.recipes.policy import RecipePolicy, default_policy
from coe.recipes.writing.expert import WritingExpert
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
            arms[recipe.name] = writing_expert(registry, recipe, experts)
            continue
        policy = fitted.get(recipe.name) or default_policy(recipe, categories=categories)
        arms[recipe.name] = RecipeExpert(
            recipe.name,
            experts,
            policy=_with_caps_in_force(policy, registry),
            categories=categories,
            final_answer=final_answer,
            limits=registry.policy,
        )
    return arms


def writing_expert(registry: Registry, recipe: RecipeSpec, experts: Mapping[str, Expert]) -> WritingExpert:
    """Return the arm of a chain or fuse over `experts`, which has at least its members."""
    declared = {name: registry.expert(name) for name in recipe.members}
    return WritingExpert(recipe, experts, declared=declared, limits=registry.policy)


def _with_caps_in_force(policy: RecipePolicy, registry: Registry) -> RecipePolicy:
    """Return the policy without caps that the declared parameters of its members do not allow."""
    return policy.with_caps({name: cap_in_force(cap, registry.expert(name)) for name, cap in policy.max_tokens.items()})
