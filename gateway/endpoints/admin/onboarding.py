"""Support for adding an expert, which is done by hand in experts.yaml.

`POST /v1/experts/check` validates an entry; `GET /v1/experts/{id}/steps` reports which steps are done. Neither writes
anything or calls a server that is not declared.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from coe.artifacts.kinds import ASSIGNMENT
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError, ConfigError, Overloaded
from coe.mapping import read_plan_file
from coe.registry import ENTRY_NAME, load, load_with_expert, yaml_source
from gateway.endpoints.admin.counts import Counts, expert_stats
from gateway.endpoints.http import json_response
from gateway.endpoints.operation import Operation, Schema, json_success, object_schema, problems
from gateway.parts import Parts
from gateway.request.body import read_body, validated

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
        name="checkExpert",
        method="POST",
        path="/v1/experts/check",
        summary=f"Check experts.yaml with one more expert, whose problems are at `{ENTRY_NAME}`; nothing is written",
        resource=Onboarding,
        handler=Onboarding.check,
        scope="admin",
        responses=json_success("The problems, if any.", _CHECK),
        body=ExpertEntry,
        problems=problems(400, 408, 413, 415, _429=_TOO_MANY),
    ),
    Operation(
        name="readExpertSteps",
        method="GET",
        path="/v1/experts/{id}/steps",
        summary="Progress of adding an expert: declared, served, reachable, scored, planned, assigned",
        resource=Onboarding,
        handler=Onboarding.steps,
        scope="admin",
        responses=json_success("The steps.", _STEPS),
        problems=problems(_429=_TOO_MANY),
    ),
)
