"""experts.yaml: what may be declared (`specs`, `policy`, `access`, `retrieval`), and the file read and checked."""

from coe.registry.access import AccessSpec, ApiKey, KeyLimits, Limits
from coe.registry.loader import ENTRY, load, load_with, schema
from coe.registry.policy import BudgetSpec, DeviceSpec, Policy, ResidencySpec
from coe.registry.retrieval import RetrievalSpec
from coe.registry.specs import AUTO, Category, ExpertSpec, LogSpec, Prices, Registry

__all__ = [
    "AUTO",
    "ENTRY",
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
    "load_with",
    "schema",
]
