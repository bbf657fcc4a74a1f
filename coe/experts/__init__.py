"""Experts that answer: built from experts.yaml (`building`), over replicas that fail well, and watched (`watch`)."""

from coe.experts.building import build_experts, endpoints_of
from coe.experts.replicas import Replica, ReplicatedExpert
from coe.experts.turns import Turns
from coe.experts.watch import watching

__all__ = ["Replica", "ReplicatedExpert", "Turns", "build_experts", "endpoints_of", "watching"]
