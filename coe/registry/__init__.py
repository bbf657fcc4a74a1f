"""experts.yaml: what may be declared (`specs`, `policy`, `access`, `retrieval`), and the file read and checked."""

from coe.registry.access import Access, ApiKey, KeyLimits, Limits
from coe.registry.loader import ENTRY, load, load_with, schema
from coe.registry.policy import Budget, Device, Policy, Residency
from coe.registry.retrieval import Retrieval
from coe.registry.specs import AUTO, Category, ExpertSpec, LogSpec, Prices, Registry

__all__ = [
    "AUTO",
    "ENTRY",
    "Access",
    "ApiKey",
    "Budget",
    "Category",
    "Device",
    "ExpertSpec",
    "KeyLimits",
    "Limits",
    "LogSpec",
    "Policy",
    "Prices",
    "Registry",
    "Residency",
    "Retrieval",
    "load",
    "load_with",
    "schema",
]
