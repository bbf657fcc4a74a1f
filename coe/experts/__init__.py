"""Experts that answer: built from experts.yaml (`building`), over replicas that fail well, and watched (`watch`)."""

from coe.experts.factory import build_experts, endpoints_of
from coe.experts.health_checks import watching
from coe.experts.replicas import Replica, ReplicatedExpert
from coe.experts.residency import ResidencyHold

__all__ = ["Replica", "ReplicatedExpert", "ResidencyHold", "build_experts", "endpoints_of", "watching"]
