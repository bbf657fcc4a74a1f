"""Loads and validates experts.yaml. `specs` and `sections` define its keys."""

from coe.registry.aliases import AUTO, MAX_MODEL_CHARACTERS, POINT_PREFIX, ModelNames, OperatingPoint, ResolvedModel
from coe.registry.experts import ExpertSpec, Prices, SelectingField
from coe.registry.loader import load, load_text, schema
from coe.registry.recipes import AUTO_RECIPES, ArmSpec, RecipeSpec
from coe.registry.sections import (
    AccessSpec,
    ApiKey,
    BudgetSpec,
    CacheSpec,
    DeviceSpec,
    KeyLimits,
    KeySpec,
    Limits,
    LogSpec,
    Policy,
    ResidencySpec,
    RetrievalSpec,
    StoredResponsesSpec,
)
from coe.registry.specs import Category, Registry

__all__ = [
    "AUTO",
    "AUTO_RECIPES",
    "MAX_MODEL_CHARACTERS",
    "POINT_PREFIX",
    "AccessSpec",
    "ApiKey",
    "ArmSpec",
    "BudgetSpec",
    "CacheSpec",
    "Category",
    "DeviceSpec",
    "ExpertSpec",
    "KeyLimits",
    "KeySpec",
    "Limits",
    "LogSpec",
    "ModelNames",
    "OperatingPoint",
    "Policy",
    "Prices",
    "RecipeSpec",
    "Registry",
    "ResidencySpec",
    "ResolvedModel",
    "RetrievalSpec",
    "SelectingField",
    "StoredResponsesSpec",
    "load",
    "load_text",
    "schema",
]
