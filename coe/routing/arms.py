"""The arms that routing selects from, and the declared experts that they call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coe.core import CountsPending, Expert
from coe.registry import ArmSpec, ExpertSpec, Registry


def opening_experts(arm: ExpertSpec | ArmSpec) -> list[str]:
    """Return the names of the declared experts that an arm calls first: several if a recipe begins with several."""
    first = arm.members[: len(arm.steps[0])] if isinstance(arm, ArmSpec) else (arm,)
    return [spec.expert_name for spec in first]


def first_expert(arm: ExpertSpec | ArmSpec) -> str:
    """Return the name of the declared expert behind an arm; for a recipe, of its first member."""
    return opening_experts(arm)[0]


def counting_by_arm(registry: Registry, experts: Mapping[str, Expert]) -> dict[str, list[CountsPending]]:
    """Return the experts that each arm calls first and that count pending calls; empty if no expert has a limit."""
    if all(spec.concurrent_requests is None for spec in registry.experts):
        return {}
    counting = {name: expert for name, expert in experts.items() if isinstance(expert, CountsPending)}
    return {arm.name: [counting[name] for name in opening_experts(arm) if name in counting] for arm in registry.arms}


def one_arm_of_each_expert(order: Sequence[str], registry: Registry) -> tuple[str, ...]:
    """Drop further arms of the same expert, which would call the same server again after it failed."""
    first: dict[str, str] = {}
    for name in order:
        first.setdefault(registry.arm(name).expert_name, name)
    return tuple(first.values())
