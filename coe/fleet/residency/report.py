"""Explains one device to operators: which experts are awake, which are loading, which requests wait, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coe.fleet.residency.state import DeviceState, ServerState


def device_report(name: str, device: DeviceState, experts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """One device as JSON, in GB and seconds. `experts` are the names behind each server."""
    return {
        "device": name,
        "memory_gb": device.memory,
        "occupied_gb": round(device.memory - device.free, 3),
        "host_memory_gb": device.host_memory,
        "host_occupied_gb": round(device.host_memory - device.host_free, 3),
        "servers": [{"experts": list(experts[one.key])} | _server(one, device) for one in device.servers],
    }


def _server(server: ServerState, device: DeviceState) -> dict[str, Any]:
    now, arrivals = device.now, list(server.waiting.values())
    return {
        "tier": server.tier,
        "memory_gb": server.profile.memory,
        "pinned": server.profile.pinned,
        "switches": server.switches,
        "in_flight": len(server.in_flight),
        "waiting": len(arrivals),
        "oldest_wait_s": round(now - arrivals[0], 3) if arrivals else None,
        "load_s": None if server.load_seconds is None else round(server.load_seconds, 3),
        "reason": _reason(server, device),
    }


def _reason(server: ServerState, device: DeviceState) -> str:
    """Return the reason why requests for the server wait; empty where none does."""
    if server.loading_since is not None:
        slept = "sleep" if server.from_sleep else "disk"
        return f"has been loading from {slept} for {device.now - server.loading_since:.1f} s"
    if not server.waiting and server.redirected is None:
        return ""
    if server.tier == "awake":
        return f"finishes its requests in flight ({len(server.in_flight)}) and leaves for an expert that waits longer"
    if server.tier == "unloading":
        return "is leaving; its requests wait until it can be loaded again"
    if server.retry_at > device.now:
        return f"failed and may start again in {server.retry_at - device.now:.1f} s"
    if any(other.tier in ("loading", "unloading") for other in device.servers):
        return "waits for its turn after the load under way"
    return f"waits until other experts are idle; after {device.max_wait:g} s they take no new requests"
