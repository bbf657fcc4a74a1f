"""`GET /v1/experts`: each expert's declaration, health, numbers and assigned categories; and its newest failures."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from coe.core import Expert
from coe.errors import DeadlineExceeded, ExpertError, LogError, LogUnavailable, ModelNotFound
from coe.experts.outcomes import Incidents
from coe.mapping import Assignment
from coe.records.record import LogQuery, RoutingRecord
from coe.registry import ExpertSpec
from gateway.endpoints.admin.counts import Counts, expert_stats, failed
from gateway.endpoints.http import json_response
from gateway.endpoints.operation import Operation, json_success, list_schema, problems
from gateway.parts import Parts
from gateway.serving_state import Serving

MAX_FAILURES = 10
LOG_SECONDS = 5.0
RETRY_AFTER = 1.0


def _codes(kind: type[ExpertError]) -> Iterator[str]:
    yield kind.code
    for below in kind.__subclasses__():
        yield from _codes(below)


FAILURES: tuple[str, ...] = tuple(dict.fromkeys((*_codes(ExpertError), DeadlineExceeded.code, "internal_error")))
"""The outcomes of requests that are an expert's failures."""


class Experts:
    """Reads the state at each request, so a reload shows at once. Counts are over all workers since the start. Breaker
    states are the worst of all workers; the state of a replica's server is this worker's view."""

    def __init__(self, parts: Parts) -> None:
        self._current, self._metrics, self._log = parts.current, parts.metrics, parts.log

    async def list(self, _: Request) -> Response:
        """`GET /v1/experts`."""
        counts = Counts(await self._metrics.families())
        serving = self._current.serving
        stats = expert_stats(counts, serving.registry)
        bounds = counts.bounds("coe_first_byte_seconds")
        data = [
            _declared(spec) | _state(serving, spec.name, stats[spec.name]) | {"first_byte_bounds": bounds}
            for spec in serving.registry.experts
        ]
        return json_response({"object": "list", "data": data})

    async def failures(self, request: Request) -> Response:
        """`GET /v1/experts/{id}/failures`: the newest in the log, without requests that another expert answered."""
        name = request.path_params["id"]
        if name not in self._current.serving.registry.expert_names:
            raise ModelNotFound(f"no expert {name[:64]!r} is declared", param="id")
        try:
            async with asyncio.timeout(LOG_SECONDS):
                found = await self._newest_failures(name)
        except TimeoutError:
            raise LogUnavailable(
                f"the routing log did not answer within {LOG_SECONDS:g} s", retry_after=RETRY_AFTER
            ) from None
        except LogError as error:
            raise LogUnavailable(f"the routing log cannot be read: {error}", retry_after=RETRY_AFTER) from None
        return json_response({"object": "list", "data": [_failure(record) for record in found]})

    async def _newest_failures(self, name: str) -> Sequence[RoutingRecord]:
        """One bounded query of the log for each kind of failure."""
        found: Sequence[RoutingRecord] = ()
        for code in FAILURES:
            page = await self._log.back(LogQuery(expert=name, outcome=code, limit=MAX_FAILURES))
            found = (*found, *page.records)
        return heapq.nlargest(MAX_FAILURES, found, key=lambda record: record.time)


def _failure(record: RoutingRecord) -> dict[str, Any]:
    return {
        "request_id": record.request_id,
        "time": record.time,
        "outcome": record.outcome,
        "category": record.category,
        "attempts": record.attempts,
    }


def _declared(spec: ExpertSpec) -> dict[str, Any]:
    """Without keys, addresses and the text of the system prompt."""
    return {
        "id": spec.name,
        "object": "expert",
        "model": spec.model,
        "runtime": spec.runtime,
        "adapter": spec.adapter,
        "apis": sorted(spec.supported_apis),
        "capabilities": sorted(spec.capabilities),
        "context_length": spec.context_length,
        "prices": {"input": spec.prices.input, "output": spec.prices.output},
        "parameters": spec.parameters,
        "system_prompt": spec.system_prompt is not None,
        "active_parameters_b": spec.active_parameters_b,
        "memory_gb": spec.memory_gb,
        "latency_ms": spec.latency_ms,
        "concurrent_requests": spec.concurrent_requests,
    }


def _state(serving: Serving, name: str, stats: Mapping[str, Any]) -> dict[str, Any]:
    expert = serving.composition.experts[name]
    health = expert.health
    residency = {key: stats[key] for key in ("tier", "waiting", "switches") if key in stats}
    return {
        "up": health.up,
        "load": health.load,
        "failing": _failing(expert),
        "p95_s": health.ttft_p95,
        "in_flight": stats["in_flight"],
        "replicas": _replicas(expert, stats["replicas"]),
        "requests": sum(stats["outcomes"].values()),
        "failed": failed(stats["outcomes"]),
        "outcomes": stats["outcomes"],
        "fallbacks": stats["fallbacks"],
        "tokens": stats["tokens"],
        "cost": stats["cost"],
        "first_byte": stats["first_byte"],
        "assigned_categories": _assigned(serving.composition.assignment, name),
        **residency,
    }


def _replicas(expert: Expert, states: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "address": replica.address,
            "state": states.get(replica.address, replica.state),
            "alive": replica.alive,
            "in_flight": replica.in_flight,
            "waiting": replica.queue_length,
        }
        for replica in getattr(expert, "replicas", ())
    ]


def _failing(expert: Expert) -> list[dict[str, Any]]:
    """The causes of its current failures, as this process sees them, with their counts."""
    incidents: Incidents | None = getattr(expert, "incidents", None)
    return (
        []
        if incidents is None
        else [{"cause": one.cause, "failures": one.failures} for one in incidents.active.values()]
    )


def _assigned(assignment: Assignment, name: str) -> list[dict[str, Any]]:
    """The categories of which it is the choice, the largest margin over the runner-up first."""
    rows = zip(assignment.categories, assignment.choice, assignment.runner_up, assignment.margin, strict=True)
    own = [
        {"category": category, "runner_up": second, "margin": margin}
        for category, choice, second, margin in rows
        if choice == name
    ]
    return sorted(own, key=lambda row: -(row["margin"] or 0.0))


OPERATIONS = (
    Operation(
        name="listExperts",
        method="GET",
        path="/v1/experts",
        summary="List the experts with their state",
        resource=Experts,
        handler=Experts.list,
        scope="admin",
        responses=json_success("The experts.", list_schema({"type": "object"})),
    ),
    Operation(
        name="listExpertFailures",
        method="GET",
        path="/v1/experts/{id}/failures",
        summary="List the newest failures of an expert in the routing log",
        resource=Experts,
        handler=Experts.failures,
        scope="admin",
        responses=json_success("The failures.", list_schema({"type": "object"})),
        problems=problems(_404="No such expert.", _503="The routing log cannot be read."),
    ),
)
