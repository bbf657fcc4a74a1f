"""`/v1/experts`: each expert with its state, its newest failures, and the steps of adding one.

An expert is added by hand in experts.yaml: `POST /v1/experts/check` validates an entry, and
`GET /v1/experts/{id}/steps` reports which steps are done. Neither writes anything or calls an undeclared server.
"""

from __future__ import annotations

import asyncio
import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
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
    LogError,
    LogUnavailable,
    ModelNotFound,
    Overloaded,
)
from coe.experts.incidents import Incidents
from coe.mapping import Assignment, read_plan_file
from coe.records.record import LogQuery, RoutingRecord
from coe.registry import ENTRY_NAME, ExpertSpec, load, load_with_expert, yaml_source
from gateway.endpoints.admin.counts import Counts, expert_stats, failed
from gateway.endpoints.operation import (
    Operation,
    Schema,
    json_response,
    json_success,
    list_schema,
    object_schema,
    problems,
)
from gateway.parts import Parts
from gateway.request.body import read_body, validated
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


MAX_BODY_BYTES = 64 * 1024
MAX_WAITING = 8
RETRY_AFTER = 1.0
_PROBLEM = re.compile(r"(?s)([^\n]*?):(\d+): (.*)")


class ExpertEntry(BaseModel):
    """An entry for the list `experts` of experts.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    entry: Annotated[str, Field(min_length=1, max_length=16_000)]
    """YAML: `- name: ...` and its other keys."""


class Onboarding:
    """Reads and parses experts.yaml for one request at a time, in a thread."""

    def __init__(self, parts: Parts) -> None:
        self._current, self._metrics, self._settings = parts.current, parts.metrics, parts.settings
        self._plans = ArtifactStore(parts.settings.artifacts, ASSIGNMENT)
        self._reading = asyncio.Lock()
        self._waiting = 0

    async def check(self, request: Request) -> Response:
        """`POST /v1/experts/check`."""
        body = validated(ExpertEntry, await read_body(request, limit=MAX_BODY_BYTES))
        return json_response({"object": "expert.check", **await self._exclusively(self._check, body.entry)})

    async def steps(self, request: Request) -> Response:
        """`GET /v1/experts/{id}/steps`."""
        name = request.path_params["id"]
        declared = await self._exclusively(self._declared)
        scored = await asyncio.to_thread(self._scored, name)
        return json_response({"object": "expert.steps", "id": name, **await self._steps(name, declared, scored)})

    async def _exclusively(self, work: Any, *arguments: Any) -> Any:
        if self._waiting >= MAX_WAITING:
            raise Overloaded("too many checks of experts.yaml are waiting; try again", retry_after=RETRY_AFTER)
        self._waiting += 1
        try:
            async with self._reading:
                return await asyncio.to_thread(work, *arguments)
        finally:
            self._waiting -= 1

    def _check(self, entry: str) -> dict[str, Any]:
        environ = self._settings.environ
        unset = [name for name in yaml_source.variable_names(entry) if name not in environ]
        try:
            registry = load_with_expert(self._settings.config, entry, environ=environ)
        except ConfigError as error:
            return {
                "ok": False,
                "problems": [_parsed_problem(one) for one in error.problems],
                "unset": unset,
                "name": None,
            }
        return {"ok": True, "problems": [], "unset": unset, "name": registry.expert_names[-1]}

    def _declared(self) -> tuple[tuple[str, ...], list[str]]:
        """The experts in the current experts.yaml, and its problems."""
        try:
            return load(self._settings.config, environ=self._settings.environ).expert_names, []
        except ConfigError as error:
            return (), list(error.problems)

    def _scored(self, name: str) -> bool:
        """Whether the plan in use was solved from scores of the expert."""
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
            "problems": [_parsed_problem(one) for one in declared[1]],
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


def _parsed_problem(problem: str) -> dict[str, Any]:
    """The parts of `file:line: message`; `where` is `entry` for the entry in the request."""
    match = _PROBLEM.fullmatch(problem)
    if match is None:
        return {"where": "", "line": None, "message": problem}
    return {"where": match[1], "line": int(match[2]), "message": match[3]}


_BOOLEAN: Schema = {"type": "boolean"}
_TEXT: Schema = {"type": "string"}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
_PROBLEM_LIST: Schema = {
    "type": "array",
    "items": object_schema({"where": _TEXT, "line": {"type": ["integer", "null"]}, "message": _TEXT}),
}
_CHECK = object_schema(
    {
        "object": {"const": "expert.check"},
        "ok": _BOOLEAN,
        "problems": _PROBLEM_LIST,
        "unset": _TEXTS,
        "name": _TEXT_OR_NULL,
    }
)
_STEPS = object_schema(
    {
        "object": {"const": "expert.steps"},
        "id": _TEXT,
        "declared": _BOOLEAN,
        "problems": _PROBLEM_LIST,
        "served": _BOOLEAN,
        "reload_error": _TEXT_OR_NULL,
        "reachable": {"type": ["boolean", "null"]},
        "scored": _BOOLEAN,
        "planned": _BOOLEAN,
        "assigned_categories": _TEXTS,
        "runtime": _TEXT_OR_NULL,
        "requests": {"type": "integer", "minimum": 0},
    }
)
_TOO_MANY = "Too many requests read experts.yaml."
OPERATIONS = (
    Operation(
        "listExperts",
        "GET",
        "/v1/experts",
        "List the experts with their state",
        Experts.list,
        json_success("The experts.", list_schema({"type": "object"})),
        resource=Experts,
    ),
    Operation(
        "listExpertFailures",
        "GET",
        "/v1/experts/{id}/failures",
        "List the newest failures of an expert in the routing log",
        Experts.failures,
        json_success("The failures.", list_schema({"type": "object"})),
        resource=Experts,
        problems=problems(_404="No such expert.", _503="The routing log cannot be read."),
    ),
    Operation(
        "checkExpert",
        "POST",
        "/v1/experts/check",
        f"Check experts.yaml with one more expert, whose problems are at `{ENTRY_NAME}`; nothing is written",
        Onboarding.check,
        json_success("The problems, if any.", _CHECK),
        resource=Onboarding,
        body=ExpertEntry,
        problems=problems(400, 408, 413, 415, _429=_TOO_MANY),
    ),
    Operation(
        "readExpertSteps",
        "GET",
        "/v1/experts/{id}/steps",
        "Progress of adding an expert: declared, served, reachable, scored, planned, assigned",
        Onboarding.steps,
        json_success("The steps.", _STEPS),
        resource=Onboarding,
        problems=problems(_429=_TOO_MANY),
    ),
)
