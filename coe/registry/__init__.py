"""experts.yaml: what may be declared (`specs`), and the file read and checked (`reading`, `checks`)."""

from coe.registry.reading import load, schema
from coe.registry.specs import (
    AUTO,
    Access,
    ApiKey,
    Budget,
    Category,
    ExpertSpec,
    KeyLimits,
    Limits,
    Policy,
    Prices,
    Registry,
)

__all__ = [
    "AUTO",
    "Access",
    "ApiKey",
    "Budget",
    "Category",
    "ExpertSpec",
    "KeyLimits",
    "Limits",
    "Policy",
    "Prices",
    "Registry",
    "load",
    "schema",
]
