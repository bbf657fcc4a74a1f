"""Experts: the LLM servers that answer requests, each behind replicas with circuit breakers and known queues."""

from coe.experts.factory import ExpertLoader, build_experts, endpoints_of
from coe.experts.replicas import Replica, ReplicatedExpert

__all__ = [
    "ExpertLoader",
    "Replica",
    "ReplicatedExpert",
    "build_experts",
    "endpoints_of",
]
