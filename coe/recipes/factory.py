"""Builds the arms of the declared recipes over the experts."""

from __future__ import annotations

from collections.abc import Mapping

from coe.core import Expert
from coe.recipes.expert import RecipeExpert
from coe.recipes.policy import RecipePolicy, default_policy
from coe.recipes.writing.expert import WritingExpert
from coe.registry import Registry
from coe.registry.recipes import RecipeSpec


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
        arms[recipe.name] = RecipeExpert(
            recipe.name,
            experts,
            policy=fitted.get(recipe.name) or default_policy(recipe, categories=categories),
            categories=categories,
            limits=registry.policy,
        )
    return arms


def writing_expert(registry: Registry, recipe: RecipeSpec, experts: Mapping[str, Expert]) -> WritingExpert:
    """Return the arm of a chain or fuse over `experts`, which has at least its members."""
    declared = {name: registry.expert(name) for name in recipe.members}
    return WritingExpert(recipe, experts, declared=declared, limits=registry.policy)
