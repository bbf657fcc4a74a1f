"""Experts that take turns at a device, as a gateway process sees them: asked for at the fleet, and in `/metrics`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from coe.fleet.residency.client import ResidencyClient, connected_client
from coe.settings import Settings
from gateway.observability.metric_registry import Labels
from gateway.observability.metrics import Metrics

TIERS = {"stopped": 0, "asleep": 1, "awake": 3}
ON_ITS_WAY = 2


@asynccontextmanager
async def open_turns(settings: Settings, metrics: Metrics) -> AsyncIterator[ResidencyClient | None]:
    """A connection to the `coe up` that started this gateway; None where all experts are awake all the time. The
    metrics are there in either case."""
    if settings.turns is None:
        _show(metrics, None)
        yield None
        return
    async with connected_client(settings.turns, task_failed=metrics.task_failed) as turns:
        _show(metrics, turns)
        turns.on_granted = metrics.waited
        yield turns


def _show(metrics: Metrics, turns: ResidencyClient | None) -> None:
    def of(key: str) -> dict[Labels, float]:
        return {(name,): float(told[key]) for name, told in turns.tiers.items()} if turns else {}

    def tiers() -> dict[Labels, float]:
        if turns is None:
            return {}
        return {(name,): float(TIERS.get(told["tier"], ON_ITS_WAY)) for name, told in turns.tiers.items()}

    expert = ("expert",)
    metrics.gauges(
        "coe_expert_tier",
        "0 stopped, 1 asleep, 2 on its way, 3 awake; where experts take turns.",
        expert,
        tiers,
        largest=True,
    )
    held = "Requests that wait for the expert's turn."
    metrics.gauges("coe_expert_held", held, expert, lambda: of("held"), largest=True)
    switches = "Times that the expert's server was woken since the start."
    metrics.gauges("coe_expert_switches", switches, expert, lambda: of("switches"), largest=True)
