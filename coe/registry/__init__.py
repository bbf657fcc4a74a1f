"""Load and validate experts.yaml. `specs`, `policy`, `access` and `retrieval` define its keys."""

from coe.registry.loader import ENTRY_NAME, load, load_with_expert, schema
from coe.registry.sections import (
    AccessSpec,
    ApiKey,
    BudgetSpec,
    DeviceSpec,
    KeyLimits,
    Limits,
    Policy,
    ResidencySpec,
    RetrievalSpec,
)
from coe.registry.specs import AUTO, Category, ExpertSpec, LogSpec, Prices, Registry

__all__ = [
    "AUTO",
    "ENTRY_NAME",
    "AccessSpec",
    "ApiKey",
    "BudgetSpec",
    "Category",
    "DeviceSpec",
    "ExpertSpec",
    "KeyLimits",
    "Limits",
    "LogSpec",
    "Policy",
    "Prices",
    "Registry",
    "ResidencySpec",
    "RetrievalSpec",
    "load",
    "load_with_expert",
    "schema",
]
