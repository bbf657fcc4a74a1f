"""Loads and validates experts.yaml. `specs` and `sections` define its keys."""

from coe.registry.experts import ExpertSpec, Prices, SelectingField
from coe.registry.loader import load, load_text, schema
from coe.registry.recipes import ArmSpec, RecipeSpec
from coe.registry.sections import (
    AUTO,
    MAX_MODEL_CHARACTERS,
    AccessSpec,
    ApiKey,
    CacheSpec,
    KeyLimits,
    KeySpec,
    Limits,
    Policy,
    StoredResponsesSpec,
)
from coe.registry.specs import Category, Registry
