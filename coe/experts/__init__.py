"""Experts: the LLM servers that answer requests, each behind replicas with circuit breakers and health checks."""

from coe.experts.factory import ResidencyHold, build_experts, build_recipes, endpoints_of
from coe.experts.health_checks import running_health_checks
from coe.experts.replicas import Replica, ReplicatedExpert

__all__ = [
    "Replica",
    "ReplicatedExpert",
    "ResidencyHold",
    "build_experts",
    "build_recipes",
    "endpoints_of",
    "running_health_checks",
]
