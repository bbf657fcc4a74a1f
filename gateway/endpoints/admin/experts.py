"""`/v1/experts`: each expert with its state, its newest failures, and the steps of adding one.

An expert is added by hand in experts.yaml: `POST /v1/experts/check` validates an entry, and
`GET /v1/experts/{id}/steps` reports which steps are done. Neither writes anything or calls an undeclared server.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coe.artifacts.kinds import ASSIGNMENT
from coe.artifacts.store import ArtifactStore
from coe.core import Expert
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
from coe.mapping import Assignment, read_plan_file
from coe.records.record import LogQuery, RoutingRecord
from coe.registry import ExpertSpec, load, load_with_expert, yaml_source
from gateway.endpoints.admin.counts import Counts, expert_stats, failed
from gateway.endpoints.admin.serial import Serial, parsed_problems
from gateway.endpoints.handler import json_response
from gateway.parts import Parts
from gateway.request.body import RequestModel, read_body, validated
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


class Experts:
    """Reads the state at each request, so a reload shows at once. Counts are over all workers since the start. Breaker
    states are the worst of all workers; the state of a replica's server is this worker's view."""

    def __init__(self, parts: Parts) -> None:
        self._current, self._metrics, self._log = parts.current, parts.metrics, parts.log
        self._session = parts.session
        self._tested: dict[str, float] = {}

    async def list(self, _: Request) -> Response:
        """List the experts with their state."""
        counts = Counts(await self._metrics.families())
        serving = self._current.serving
        stats = expert_stats(counts, serving.registry)
        bounds = counts.bounds("coe_first_byte_seconds")
        data = [
            _declared(spec) | _state(serving, spec.name, stats[spec.name]) | {"first_byte_bounds": bounds}
            for spec in serving.registry.experts
        ]
        return json_response({"object": "list", "data": data})

    async def recipes(self, _: Request) -> Response:
        """List the recipes, declared or proposed by the plan, with steps, caps and arms."""
        data = [
            {
                "object": "recipe",
                "id": one.name,
                "steps": one.steps,
                "arms": list(map(one.arm, range(1, one.levels + 1))),
                "max_tokens": one.max_tokens,
            }
            for one in self._current.serving.registry.declared_recipes
        ]
        return json_response({"object": "list", "data": data})

    async def failures(self, request: Request) -> Response:
        """List the newest failures of an expert in the routing log.

        Requests that another expert answered are left out.
        """
        name = request.path_params["id"]
        if name not in self._current.serving.registry.expert_names:
            raise ModelNotFound(f"no expert {name[:64]!r} is declared", param="id")
        try:
            async with asyncio.timeout(LOG_SECONDS):
                found = await self._newest_failures(name)
        except (TimeoutError, StoreError) as error:
            why = str(error) or f"no answer within {LOG_SECONDS:g} s"
            raise LogUnavailable(f"the routing log cannot be read: {why}", retry_after=RETRY_AFTER) from None
        names = ("request_id", "time", "outcome", "category", "attempts")
        data = [{name: getattr(record, name) for name in names} for record in found]
        return json_response({"object": "list", "data": data})

    async def test(self, request: Request) -> Response:
        """Request one token from each server of an expert, past breakers, limits and the log."""
        name, serving = request.path_params["id"], self._current.serving
        expert = serving.composition.experts.get(name)
        if name not in serving.registry.expert_names or not isinstance(expert, ReplicatedExpert):
            raise ModelNotFound(f"no expert {name[:64]!r} is declared", param="id")
        spec = serving.registry.expert(name)
        if serving.registry.residency is not None and spec.is_local and not spec.addresses:
            raise InvalidRequest(f"{name!r} shares a device, so a test would switch models; use the playground instead")
        self._check_pause(name)
        assert self._session is not None
        found = await check_experts([expert], session=self._session, streams=True)
        return json_response(
            {"object": "expert.test", "id": name, "data": [asdict(one) | {"ok": one.ok} for one in found]}
        )

    def _check_pause(self, name: str) -> None:
        """Raises Overloaded for the test of an expert that was tested just before."""
        now = time.monotonic()
        if (wait := self._tested.get(name, -math.inf) + TEST_PAUSE_SECONDS - now) > 0:
            raise Overloaded(f"{name!r} was tested just now; try again in {wait:.1f} s", retry_after=wait)
        self._tested = {one: at for one, at in self._tested.items() if at + TEST_PAUSE_SECONDS > now} | {name: now}

    async def _newest_failures(self, name: str) -> Sequence[RoutingRecord]:
        """One bounded query of the log for each kind of failure."""
        found: Sequence[RoutingRecord] = ()
        for code in FAILURES:
            page = await self._log.back(LogQuery(expert=name, outcome=code, limit=MAX_FAILURES))
            found = (*found, *page.records)
        return heapq.nlargest(MAX_FAILURES, found, key=lambda record: record.time)


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
    expert = serving.composition.experts[name]
    health = expert.health
    residency = {key: stats[key] for key in ("tier", "waiting", "switches") if key in stats}
    return {
        "up": health.up,
        "load": health.load,
        "failing": _failing(expert),
        "replicas": _replicas(expert, stats["replicas"]),
        "requests": sum(stats["outcomes"].values()),
        "failed": failed(stats["outcomes"]),
        "assigned_categories": _assigned(serving.composition.assignment, name),
        **{key: stats[key] for key in _STATS_FIELDS},
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
    active = () if incidents is None else incidents.active.values()
    return [{"cause": one.cause, "failures": one.failures} for one in active]


def _assigned(assignment: Assignment, name: str) -> list[dict[str, Any]]:
    """The categories assigned to this expert, largest margin over the runner-up first."""
    rows = zip(assignment.categories, assignment.choice, assignment.runner_up, assignment.margin, strict=True)
    own = [
        {"category": category, "runner_up": second, "margin": margin}
        for category, choice, second, margin in rows
        if choice == name
    ]
    return sorted(own, key=lambda row: -(row["margin"] or 0.0))


class ExpertEntry(RequestModel):
    """An entry for the list `experts` of experts.yaml."""

    entry: Annotated[str, Field(min_length=1, max_length=16_000)]
    """YAML: `- name: ...` and its other keys."""


class Onboarding:
    """Reads and parses experts.yaml for one request at a time, in a thread."""

    def __init__(self, parts: Parts) -> None:
        self._current, self._metrics, self._settings = parts.current, parts.metrics, parts.settings
        self._plans = ArtifactStore(parts.settings.artifacts, ASSIGNMENT)
        self._serial = Serial()

    async def check(self, request: Request) -> Response:
        """Check experts.yaml with one more expert, whose problems are at `entry`; nothing is written."""
        body = validated(ExpertEntry, await read_body(request, limit=MAX_BODY_BYTES))
        return json_response({"object": "expert.check", **await self._serial.run(self._check, body.entry)})

    async def steps(self, request: Request) -> Response:
        """Progress of adding an expert: declared, served, reachable, scored, planned, assigned."""
        name = request.path_params["id"]
        declared = await self._serial.run(self._declared)
        scored = await asyncio.to_thread(self._scored, name)
        return json_response({"object": "expert.steps", "id": name, **await self._steps(name, declared, scored)})

    def _check(self, entry: str) -> dict[str, Any]:
        environ = self._settings.environ
        unset = [name for name in yaml_source.variable_names(entry) if name not in environ]
        try:
            registry = load_with_expert(self._settings.config, entry, environ=environ)
        except ConfigError as error:
            return {"ok": False, "problems": parsed_problems(error.problems), "unset": unset, "name": None}
        return {"ok": True, "problems": [], "unset": unset, "name": registry.expert_names[-1]}

    def _declared(self) -> tuple[tuple[str, ...], list[str]]:
        """The experts in the current experts.yaml, and its problems."""
        try:
            return load(self._settings.config, environ=self._settings.environ).expert_names, []
        except ConfigError as error:
            return (), list(error.problems)

    def _scored(self, name: str) -> bool:
        """Returns whether the plan in use was solved from scores of the expert."""
        version = self._current.serving.versions.get(ASSIGNMENT)
        try:
            stored = None if version is None else read_plan_file(self._plans.published(version).folder)
        except ArtifactError:
            return False
        if stored is None or name not in stored["experts"]:
            return False
        column = stored["experts"].index(name)
        return any(row[column] for row in stored["count"])

    async def _steps(self, name: str, declared: tuple[tuple[str, ...], list[str]], scored: bool) -> Mapping[str, Any]:
        serving = self._current.serving
        assignment = serving.composition.assignment
        served = name in serving.registry.expert_names
        found: dict[str, Any] = {"outcomes": {}}
        alive: list[bool | None] = []
        if served:
            found = expert_stats(Counts(await self._metrics.families()), serving.registry)[name]
            alive = [one.alive for one in getattr(serving.composition.experts[name], "replicas", ())]
        requests = sum(found["outcomes"].values())
        return {
            "declared": name in declared[0],
            "problems": parsed_problems(declared[1]),
            "served": served,
            "reload_error": self._current.reload_error,
            "reachable": True if found["outcomes"].get("ok") or any(alive) else False if False in alive else None,
            "scored": scored,
            "planned": serving.versions.get(ASSIGNMENT) is not None,
            "assigned_categories": [
                category
                for category, choice in zip(assignment.categories, assignment.choice, strict=True)
                if choice == name
            ],
            "runtime": serving.registry.expert(name).runtime if served else None,
            "requests": requests,
        }
