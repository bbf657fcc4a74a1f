"""Connects a gateway process to the residency scheduler of `coe up`, and adds its metrics.

Experts that share a device are loaded on demand; the scheduler decides which, and the client waits for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from coe.fleet.residency.client import ResidencyClient, connected_client
from coe.settings import Settings
from gateway.observability.metric_registry import Labels
from gateway.observability.metrics import Metrics

TIER_VALUES = {"stopped": 0, "asleep": 1, "awake": 3}
CHANGING = 2


@asynccontextmanager
async def open_residency(settings: Settings, metrics: Metrics) -> AsyncIterator[ResidencyClient | None]:
    """A connection to the `coe up` that started this gateway; None if all experts are always loaded. The metrics exist
    in either case."""
    if settings.residency_socket is None:
        _add_metrics(metrics, None)
        yield None
        return
    async with connected_client(settings.residency_socket, task_failed=metrics.task_failed) as client:
        _add_metrics(metrics, client)
        client.on_granted = metrics.record_residency_wait
        yield client


def _add_metrics(metrics: Metrics, client: ResidencyClient | None) -> None:
    def by_expert(key: str) -> dict[Labels, float]:
        return {(name,): float(state[key]) for name, state in client.tiers.items()} if client else {}

    def tiers() -> dict[Labels, float]:
        if client is None:
            return {}
        return {(name,): float(TIER_VALUES.get(state["tier"], CHANGING)) for name, state in client.tiers.items()}

    expert = ("expert",)
    tier = "0 stopped, 1 asleep, 2 changing, 3 awake; only for experts that share a device."
    metrics.gauges("coe_expert_tier", tier, expert, tiers, largest=True)
    waiting = "Requests that wait until the expert is awake."
    metrics.gauges("coe_expert_waiting", waiting, expert, lambda: by_expert("waiting"), largest=True)
    switches = "Times that the expert's server was woken since the start."
    metrics.gauges("coe_expert_switches", switches, expert, lambda: by_expert("switches"), largest=True)
