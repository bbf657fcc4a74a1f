"""`/v1/experts`: each expert with its state, its newest failures, and the steps of adding one.

An expert is added by hand in experts.yaml: `POST /v1/experts/check` validates an entry, and
`GET /v1/experts/{id}/steps` reports which steps are done. Neither writes anything or calls an undeclared server.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coe.artifacts.kinds import ASSIGNMENT
from coe.artifacts.store import ArtifactStore
from coe.errors import (
    ArtifactError,
    ConfigError,
    DeadlineExceeded,
    ExpertError,
    InvalidRequest,
    LogUnavailable,
    ModelNotFound,
    Overloaded,
    StoreError,
)
from coe.experts import ReplicatedExpert
from coe.experts.live_check import check_experts
from coe.experts.outcomes import Incidents
from coe.planning import Plan
from coe.records.record import LogQuery, RoutingRecord
from coe.registry import ExpertSpec, load, load_with_expert, yaml_source
from gateway.endpoints.admin.counts import Counts, expert_stats, failed
from gateway.endpoints.admin.serial import Serial, parsed_problems
from gateway.endpoints.handler import json_of, json_response, list_response
from gateway.parts import Parts
from gateway.request.body import RequestModel
from gateway.serving_state import Serving

MAX_FAILURES = 10
LOG_SECONDS = 5.0
TEST_PAUSE_SECONDS = 5.0
"""Time between two tests of an expert in one worker process."""
MAX_BODY_BYTES = 64 * 1024
RETRY_AFTER = 1.0


def _codes(kind: type[ExpertError]) -> Iterator[str]:
    yield kind.code
    for below in kind.__subclasses__():
        yield from _codes(below)


FAILURES: tuple[str, ...] = tuple(dict.fromkeys((*_codes(ExpertError), DeadlineExceeded.code, "internal_error")))
"""The outcomes of requests that are an expert's failures."""

_DECLARED_FIELDS = (
    *("model", "runtime", "adapter", "context_length", "parameters", "active_parameters_b", "memory_gb", "latency_ms"),
    "concurrent_requests",
)
_STATS_FIELDS = ("in_flight", "outcomes", "fallbacks", "tokens", "cost", "first_byte")


async def list_experts(parts: Parts, _: Request) -> Response:
    """The experts with their state, which is read at each request, so that a reload shows at once.

    Counts are over all workers since the start. Breaker states are the worst of all workers; the state of a replica's
    server is this worker's view.
    """
    counts, serving = Counts(await parts.metrics.families()), parts.current.serving
    stats, bounds = expert_stats(counts, serving.registry), counts.bounds("coe_first_byte_seconds")
    return list_response(
        [
            _declared(spec) | _state(serving, spec.name, stats[spec.name]) | {"first_byte_bounds": bounds}
            for spec in serving.registry.experts
        ]
    )


async def list_recipes(parts: Parts, _: Request) -> Response:
    """The recipes, declared or proposed by the plan, with steps and caps."""
    return list_response(
        [
            {
                "object": "recipe",
                "id": one.name,
                "steps": one.steps,
                "max_tokens": one.max_tokens,
            }
            for one in parts.current.serving.registry.declared_recipes
        ]
    )


async def list_failures(parts: Parts, request: Request) -> Response:
    """The newest failures of an expert in the routing log, without requests that another expert answered."""
    name = request.path_params["id"]
    if name not in parts.current.serving.registry.expert_names:
        raise ModelNotFound(f"no expert {name[:64]!r} is declared", param="id")
    records: list[RoutingRecord] = []
    try:
        async with asyncio.timeout(LOG_SECONDS):
            for code in FAILURES:  # one bounded query for each kind of failure
                records += (await parts.log.back(LogQuery(expert=name, outcome=code, limit=MAX_FAILURES))).records
    except (TimeoutError, StoreError) as error:
        why = str(error) or f"no answer within {LOG_SECONDS:g} s"
        raise LogUnavailable(f"the routing log cannot be read: {why}", retry_after=RETRY_AFTER) from None
    newest = heapq.nlargest(MAX_FAILURES, records, key=lambda record: record.time)
    fields = ("request_id", "time", "outcome", "category", "attempts")
    return list_response([{field: getattr(record, field) for field in fields} for record in newest])


class ExpertTests:
    """Tests of experts, at most one of each within TEST_PAUSE_SECONDS."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._tested: dict[str, float] = {}

    async def test(self, request: Request) -> Response:
        """Request one token from each server of an expert, past breakers, limits and the log."""
        name, serving = request.path_params["id"], self._parts.current.serving
        expert = serving.composition.experts.get(name)
        if name not in serving.registry.expert_names or not isinstance(expert, ReplicatedExpert):
            raise ModelNotFound(f"no expert {name[:64]!r} is declared", param="id")
        spec = serving.registry.expert(name)
        if serving.registry.residency is not None and spec.is_local and not spec.addresses:
            raise InvalidRequest(f"{name!r} shares a device, so a test would switch models; use the playground instead")
        now = time.monotonic()
        if (wait := self._tested.get(name, -math.inf) + TEST_PAUSE_SECONDS - now) > 0:
            raise Overloaded(f"{name!r} was tested just now; try again in {wait:.1f} s", retry_after=wait)
        self._tested = {one: at for one, at in self._tested.items() if at + TEST_PAUSE_SECONDS > now} | {name: now}
        assert self._parts.session is not None
        results = await check_experts([expert], session=self._parts.session, streams=True)
        data = [asdict(one) | {"ok": one.ok} for one in results]
        return json_response({"object": "expert.test", "id": name, "data": data})


def _declared(spec: ExpertSpec) -> dict[str, Any]:
    """The declaration of an expert without keys, addresses and the text of the system prompt."""
    return {name: getattr(spec, name) for name in _DECLARED_FIELDS} | {
        "id": spec.name,
        "object": "expert",
        "apis": sorted(spec.supported_apis),
        "capabilities": sorted(spec.capabilities),
        "languages": None if spec.languages is None else sorted(spec.languages),
        "prices": {"input": spec.prices.input, "output": spec.prices.output, "cached_input": spec.prices.cached},
        "system_prompt": spec.system_prompt is not None,
    }


def _state(serving: Serving, name: str, stats: Mapping[str, Any]) -> dict[str, Any]:
    expert, assignment = serving.composition.experts[name], serving.composition.assignment
    rows = zip(assignment.categories, assignment.choice, assignment.runners_up, strict=True)
    assigned = [
        {"category": category, "runner_up": second, "margin": margin}
        for category, choice, (second, margin) in rows
        if choice == name
    ]
    incidents: Incidents | None = getattr(expert, "incidents", None)
    failing = () if incidents is None else incidents.active.values()
    health, states = expert.health, stats["replicas"]
    return {
        "up": health.up,
        "load": health.load,
        "failing": [{"cause": one.cause, "failures": one.failures} for one in failing],  # as this process sees them
        "replicas": [
            {
                "address": replica.address,
                "state": states.get(replica.address, replica.state),
                "alive": replica.alive,
                "in_flight": replica.in_flight,
                "waiting": replica.queue_length,
            }
            for replica in getattr(expert, "replicas", ())
        ],
        "requests": sum(stats["outcomes"].values()),
        "failed": failed(stats["outcomes"]),
        "assigned_categories": sorted(assigned, key=lambda row: -(row["margin"] or 0.0)),
        **{key: stats[key] for key in _STATS_FIELDS if key in stats},
    }


class ExpertEntry(RequestModel):
    """An entry for the list `experts` of experts.yaml."""

    entry: Annotated[str, Field(min_length=1, max_length=16_000)]
    """YAML: `- name: ...` and its other keys."""


class Onboarding:
    """Reads and parses experts.yaml for one request at a time, in a thread."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._plans = ArtifactStore(parts.settings.artifacts, ASSIGNMENT)
        self._serial = Serial()

    async def check(self, request: Request) -> Response:
        """Check experts.yaml with one more expert, whose problems are at `entry`; nothing is written."""
        body = await json_of(request, ExpertEntry, limit=MAX_BODY_BYTES)
        return json_response({"object": "expert.check", **await self._serial.run(self._check, body.entry)})

    def _check(self, entry: str) -> dict[str, Any]:
        settings = self._parts.settings
        unset = [name for name in yaml_source.variable_names(entry) if name not in settings.environ]
        try:
            registry = load_with_expert(settings.config, entry, environ=settings.environ)
        except ConfigError as error:
            return {"ok": False, "problems": parsed_problems(error.problems), "unset": unset, "name": None}
        return {"ok": True, "problems": [], "unset": unset, "name": registry.expert_names[-1]}

    async def steps(self, request: Request) -> Response:
        """Progress of adding an expert: declared, served, reachable, scored, planned, assigned."""
        name, current = request.path_params["id"], self._parts.current
        declared, problems = await self._serial.run(self._declared)
        scored = await asyncio.to_thread(self._scored, name)
        serving = current.serving
        assignment, served = serving.composition.assignment, name in serving.registry.expert_names
        outcomes: dict[str, int] = {}
        alive: list[bool | None] = []
        if served:
            counts = Counts(await self._parts.metrics.families())
            outcomes = expert_stats(counts, serving.registry)[name]["outcomes"]
            alive = [one.alive for one in getattr(serving.composition.experts[name], "replicas", ())]
        choices = zip(assignment.categories, assignment.choice, strict=True)
        return json_response(
            {
                "object": "expert.steps",
                "id": name,
                "declared": name in declared,
                "problems": parsed_problems(problems),
                "served": served,
                "reload_error": current.reload_error,
                "reachable": True if outcomes.get("ok") or any(alive) else False if False in alive else None,
                "scored": scored,
                "planned": serving.versions.get(ASSIGNMENT) is not None,
                "assigned_categories": [category for category, choice in choices if choice == name],
                "runtime": serving.registry.expert(name).runtime if served else None,
                "requests": sum(outcomes.values()),
            }
        )

    def _declared(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The experts in the current experts.yaml, and its problems."""
        settings = self._parts.settings
        try:
            return load(settings.config, environ=settings.environ).expert_names, ()
        except ConfigError as error:
            return (), tuple(error.problems)

    def _scored(self, name: str) -> bool:
        """Returns whether the plan in use was solved from scores of the expert."""
        version = self._parts.current.serving.versions.get(ASSIGNMENT)
        try:
            plan = None if version is None else Plan.read(self._plans.published(version).folder)
        except ArtifactError:
            return False
        if plan is None or name not in plan.table.experts:
            return False
        return bool(plan.table.count[:, plan.table.experts.index(name)].any())
