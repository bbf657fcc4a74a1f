"""`GET /v1/experts`: what is declared of each expert, how it does, what it answers, and how it failed lately.

The outcomes of requests that are an expert's failures.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from coe.core import Expert
from coe.errors import LogError, LogUnavailable, ModelNotFound
from coe.experts.incidents import Incidents
from coe.mapping import Assignment
from coe.records.record import LogQuery, RoutingRecord
from coe.registry import ExpertSpec
from gateway.endpoints.admin.counts import Counts, experts_told, failed
from gateway.endpoints.admin.operation import Operation, listed
from gateway.serving_state import Serving

if TYPE_CHECKING:
    from gateway.parts import Parts
from collections.abc import Iterator

from coe.errors import DeadlineExceeded, ExpertError


def _codes(kind: type[ExpertError]) -> Iterator[str]:
    yield kind.code
    for below in kind.__subclasses__():
        yield from _codes(below)


FAILURES: tuple[str, ...] = tuple(dict.fromkeys((*_codes(ExpertError), DeadlineExceeded.code, "internal_error")))


SHOWN = 10
"""Failures that are told of one expert, the newest."""
LOG_SECONDS = 5.0
RETRY_AFTER = 1.0


class Experts:
    """Looked up when asked for, so a reload shows at once. Counts are over all workers since the start; breakers are
    the worst of the workers, what the server of a replica does is as this one sees it."""

    def __init__(self, parts: Parts) -> None:
        self._current, self._metrics, self._log = parts.current, parts.metrics, parts.log

    async def all(self, _: Request) -> Response:
        counts = Counts(await self._metrics.families())
        serving = self._current.serving
        told = experts_told(counts, serving.registry)
        bounds = counts.bounds("coe_first_byte_seconds")
        data = [
            _declared(spec) | _standing(serving, spec.name, told[spec.name]) | {"first_byte_bounds": bounds}
            for spec in serving.registry.experts
        ]
        return _answer({"object": "list", "data": data})

    async def failures(self, request: Request) -> Response:
        """The newest failures that the log holds, by time, code and request id; a request that another expert took
        over is not among them."""
        name = request.path_params["id"]
        if name not in self._current.serving.registry.expert_names:
            raise ModelNotFound(f"no expert {name[:64]!r} is declared", param="id")
        try:
            async with asyncio.timeout(LOG_SECONDS):
                found = await self._failed(name)
        except TimeoutError:
            raise LogUnavailable(
                f"the routing log did not answer within {LOG_SECONDS:g} s", retry_after=RETRY_AFTER
            ) from None
        except LogError as error:
            raise LogUnavailable(f"the routing log cannot be read: {error}", retry_after=RETRY_AFTER) from None
        return _answer({"object": "list", "data": [_told(record) for record in found]})

    async def _failed(self, name: str) -> list[RoutingRecord]:
        """One bounded look into the log for each kind of failure."""
        found: list[RoutingRecord] = []
        for code in FAILURES:
            page = await self._log.back(LogQuery(expert=name, outcome=code, limit=SHOWN))
            found += page.records
        return heapq.nlargest(SHOWN, found, key=lambda record: record.time)


def _told(record: RoutingRecord) -> dict[str, Any]:
    return {
        "request_id": record.request_id,
        "time": record.time,
        "outcome": record.outcome,
        "category": record.category,
        "attempts": record.attempts,
    }


def _declared(spec: ExpertSpec) -> dict[str, Any]:
    """No key, no address and no system prompt: whether there is one."""
    return {
        "id": spec.name,
        "object": "expert",
        "model": spec.model,
        "runtime": spec.runtime,
        "adapter": spec.adapter,
        "apis": sorted(spec.spoken),
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


def _standing(serving: Serving, name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    expert = serving.composition.experts[name]
    health = expert.health
    turns = {key: told[key] for key in ("tier", "held", "switches") if key in told}
    return {
        "up": health.up,
        "load": health.load,
        "failing": _failing(expert),
        "p95_s": health.p95,
        "in_flight": told["in_flight"],
        "replicas": _replicas(expert, told["replicas"]),
        "requests": sum(told["outcomes"].values()),
        "failed": failed(told["outcomes"]),
        "outcomes": told["outcomes"],
        "fallbacks": told["fallbacks"],
        "tokens": told["tokens"],
        "cost": told["cost"],
        "first_byte": told["first_byte"],
        "answers": _answers(serving.composition.assignment, name),
        **turns,
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
    """The causes for which it fails now, as this process sees it, each with its number of failures."""
    incidents: Incidents | None = getattr(expert, "incidents", None)
    return (
        []
        if incidents is None
        else [{"cause": one.cause, "failures": one.failures} for one in incidents.active.values()]
    )


def _answers(assignment: Assignment, name: str) -> list[dict[str, Any]]:
    """The categories that are its own, by how clearly; the margin is over the runner-up."""
    rows = zip(assignment.categories, assignment.choice, assignment.runner_up, assignment.margin, strict=True)
    own = [
        {"category": category, "runner_up": second, "margin": margin}
        for category, choice, second, margin in rows
        if choice == name
    ]
    return sorted(own, key=lambda row: -(row["margin"] or 0.0))


def _answer(value: dict[str, Any]) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


OPERATIONS = (
    Operation("listExperts", "GET", "/v1/experts", "How each expert stands", Experts.all, listed({"type": "object"})),
    Operation(
        "listExpertFailures",
        "GET",
        "/v1/experts/{id}/failures",
        "The newest failures of an expert in the routing log",
        Experts.failures,
        listed({"type": "object"}),
        problems=(404, 503),
    ),
)
