"""Which experts an `ExpertRule` permits: the list of an API key, and the limitation to local experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from coe.core import ExpertRule
from coe.registry.experts import ExpertSpec
from coe.registry.recipes import ArmSpec
from coe.registry.sections import AUTO, matches
from coe.registry.specs import Registry

Exclusion = Literal["", "key", "not_local"]
"""Reason why a rule excludes an expert: the API key does not permit it, or it is not local. Empty if none does."""


def only_local(rule: ExpertRule | None) -> ExpertRule:
    """Return a rule that permits the local experts of another rule, or all local experts."""
    return replace(rule or ExpertRule(), only_local=True)


def exclusion(rule: ExpertRule | None, arm: ExpertSpec | ArmSpec) -> Exclusion:
    """Return why a rule excludes an expert or arm. A recipe is excluded if the rule excludes any expert that it calls,
    its judge included."""
    if rule is None:
        return ""
    called, names = arm.called if isinstance(arm, ArmSpec) else (arm,), rule.experts
    if names is not None and not all(any(matches(name, one.name) for name in names) for one in called):
        return "key"
    return "not_local" if rule.only_local and not all(one.is_local for one in called) else ""


def excluded_experts(registry: Registry, rule: ExpertRule | None) -> dict[str, Exclusion]:
    """Return the experts that a rule excludes, and why."""
    return {spec.name: why for spec in registry.experts if (why := exclusion(rule, spec))}


def permitted_models(registry: Registry, rule: ExpertRule | None) -> tuple[str, ...]:
    """Return the values of `model` that a list can show to a caller with this rule."""
    return tuple(name for name in registry.listed_models if permits_model(registry, rule, name))


def permits_model(registry: Registry, rule: ExpertRule | None, name: str) -> bool:
    """Return whether a name is a known value of `model`, and a request with this rule may send it."""
    found = registry.models.resolve(name)
    return found is not None and (found.model == AUTO or not exclusion(rule, registry.arm(found.model)))
