"""Says what a cluster lacks for a server that finds no room on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coe.fleet.ray.server_request import GB, Need

_WORDS = {"CPU": "CPU", "GPU": "GPU", "memory": "GB of memory"}


def shortage(need: Need, ray: Any) -> str:
    """What one server needs, what the cluster has and has free of that, and on how many nodes."""
    wanted = need.resources
    try:
        has, free = ray.cluster_resources(), ray.available_resources()
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    except ray.exceptions.RayError as error:
        return f"it needs {_told(wanted, wanted)}; the cluster does not say what it has ({error})"
    short = {name: amount - free.get(name, 0.0) for name, amount in wanted.items() if free.get(name, 0.0) < amount}
    missing = f"missing: {_told(short, short)}" if short else "enough in all, but not on any one node"
    return (
        f"it needs {_told(wanted, wanted)}; the {nodes} node{'' if nodes == 1 else 's'} of the cluster have "
        f"{_told(has, wanted)}, of which {_told(free, wanted)} are free ({missing})"
    )


def _told(amounts: Mapping[str, float], names: Mapping[str, float]) -> str:
    return " and ".join(_one(name, amounts.get(name, 0.0)) for name in names)


def _one(name: str, amount: float) -> str:
    return f"{amount / GB if name == 'memory' else amount:.3g} {_WORDS[name]}"
