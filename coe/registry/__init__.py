"""Loads and validates experts.yaml. `specs` and `sections` define its keys."""

from coe.registry.loader import ENTRY_NAME, load, load_with_expert, schema
from coe.registry.recipes import AUTO_RECIPES, RECIPE_LEVELS, RecipeSpec
from coe.registry.sections import (
    AccessSpec,
    ApiKey,
    BudgetSpec,
    CacheSpec,
    DeviceSpec,
    KeyLimits,
    Limits,
    Policy,
    ResidencySpec,
    RetrievalSpec,
)
from coe.registry.specs import AUTO, ArmSpec, Category, ExpertSpec, ExpertVariant, LogSpec, Registry
from coe.registry.variants import Prices

__all__ = [
    "AUTO",
    "AUTO_RECIPES",
    "ENTRY_NAME",
    "RECIPE_LEVELS",
    "AccessSpec",
    "ApiKey",
    "ArmSpec",
    "BudgetSpec",
    "CacheSpec",
    "Category",
    "DeviceSpec",
    "ExpertSpec",
    "ExpertVariant",
    "KeyLimits",
    "Limits",
    "LogSpec",
    "Policy",
    "Prices",
    "RecipeSpec",
    "Registry",
    "ResidencySpec",
    "RetrievalSpec",
    "load",
    "load_with_expert",
    "schema",
]
