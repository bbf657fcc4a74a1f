"""`POST /v1/experts/check` and `GET /v1/experts/{id}/steps`: an expert is added in experts.yaml, by hand; these say
whether its entry is right and how far it has come. Nothing is written, and nothing is asked that is not declared."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError, ConfigError, Overloaded
from coe.mapping import read_plan_file
from coe.registry import ENTRY, load, load_with, yaml_source
from coe.runtime.active_state import ASSIGNMENT
from gateway.endpoints.admin.counts import Counts, experts_told
from gateway.endpoints.admin.operation import Operation, Schema, whole
from gateway.request.body import read_body, validated

if TYPE_CHECKING:
    from gateway.parts import Parts

MAX_BODY = 64 * 1024
MOST_WAITING = 8
RETRY_AFTER = 1.0
_PROBLEM = re.compile(r"(?s)([^\n]*?):(\d+): (.*)")


class Entry(BaseModel):
    """One expert, as it would stand under `experts`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    entry: Annotated[str, Field(min_length=1, max_length=16_000)]
    """YAML: `- name: ...` with its other keys below."""


class Onboarding:
    """One file is read and parsed at a time, in a thread."""

    def __init__(self, parts: Parts) -> None:
        self._current, self._metrics, self._settings = parts.current, parts.metrics, parts.settings
        self._plans = ArtifactStore(parts.settings.artifacts, ASSIGNMENT)
        self._reading = asyncio.Lock()
        self._waiting = 0

    async def check(self, request: Request) -> Response:
        asked = validated(Entry, await read_body(request, limit=MAX_BODY))
        return _answer({"object": "expert.check", **await self._alone(self._checked, asked.entry)})

    async def steps(self, request: Request) -> Response:
        name = request.path_params["id"]
        declared = await self._alone(self._declared)
        scored = await asyncio.to_thread(self._scored, name)
        return _answer({"object": "expert.steps", "id": name, **await self._come(name, declared, scored)})

    async def _alone(self, work: Any, *told: Any) -> Any:
        if self._waiting >= MOST_WAITING:
            raise Overloaded("others have experts.yaml read already; ask again", retry_after=RETRY_AFTER)
        self._waiting += 1
        try:
            async with self._reading:
                return await asyncio.to_thread(work, *told)
        finally:
            self._waiting -= 1

    def _checked(self, entry: str) -> dict[str, Any]:
        environ = self._settings.environ
        unset = [name for name in yaml_source.variables(entry) if name not in environ]
        try:
            registry = load_with(self._settings.config, entry, environ=environ)
        except ConfigError as error:
            return {"ok": False, "problems": [_placed(one) for one in error.problems], "unset": unset, "name": None}
        return {"ok": True, "problems": [], "unset": unset, "name": registry.expert_names[-1]}

    def _declared(self) -> tuple[tuple[str, ...], list[str]]:
        """The names in experts.yaml as it is now, and what is wrong with it."""
        try:
            return load(self._settings.config, environ=self._settings.environ).expert_names, []
        except ConfigError as error:
            return (), list(error.problems)

    def _scored(self, name: str) -> bool:
        """Whether the plan in use was made of scores of it."""
        version = self._current.serving.versions.get(ASSIGNMENT)
        try:
            kept = None if version is None else read_plan_file(self._plans.published(version).folder)
        except ArtifactError:
            return False
        if kept is None or name not in kept["experts"]:
            return False
        column = kept["experts"].index(name)
        return any(row[column] for row in kept["count"])

    async def _come(self, name: str, declared: tuple[tuple[str, ...], list[str]], scored: bool) -> Mapping[str, Any]:
        serving = self._current.serving
        assignment = serving.composition.assignment
        served = name in serving.registry.expert_names
        found: dict[str, Any] = {"outcomes": {}}
        alive: list[bool | None] = []
        if served:
            found = experts_told(Counts(await self._metrics.families()), serving.registry)[name]
            alive = [one.alive for one in getattr(serving.composition.experts[name], "replicas", ())]
        requests = sum(found["outcomes"].values())
        return {
            "declared": name in declared[0],
            "problems": [_placed(one) for one in declared[1]],
            "served": served,
            "reload_error": self._current.reload_error,
            "reachable": True if found["outcomes"].get("ok") or any(alive) else False if False in alive else None,
            "scored": scored,
            "planned": serving.versions.get(ASSIGNMENT) is not None,
            "answers": [
                category
                for category, choice in zip(assignment.categories, assignment.choice, strict=True)
                if choice == name
            ],
            "runtime": serving.registry.expert(name).runtime if served else None,
            "requests": requests,
        }


def _placed(problem: str) -> dict[str, Any]:
    """`file:line: what` in its parts; `where` is `entry` for what was sent."""
    match = _PROBLEM.fullmatch(problem)
    if match is None:
        return {"where": "", "line": None, "message": problem}
    return {"where": match[1], "line": int(match[2]), "message": match[3]}


def _answer(value: dict[str, Any]) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


_FLAG: Schema = {"type": "boolean"}
_TEXT: Schema = {"type": "string"}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_MAYBE: Schema = {"type": ["string", "null"]}
_PROBLEMS: Schema = {
    "type": "array",
    "items": whole({"where": _TEXT, "line": {"type": ["integer", "null"]}, "message": _TEXT}),
}
OPERATIONS = (
    Operation(
        "checkExpert",
        "POST",
        "/v1/experts/check",
        f"Whether experts.yaml is right with one expert more; its problems are at `{ENTRY}`, and nothing is written",
        Onboarding.check,
        whole(
            {
                "object": {"const": "expert.check"},
                "ok": _FLAG,
                "problems": _PROBLEMS,
                "unset": _TEXTS,
                "name": _MAYBE,
            }
        ),
        body=Entry,
        problems=(400, 408, 413, 415, 429),
    ),
    Operation(
        "readExpertSteps",
        "GET",
        "/v1/experts/{id}/steps",
        "How far an expert has come: declared, served, reachable, scored, planned, answering",
        Onboarding.steps,
        whole(
            {
                "object": {"const": "expert.steps"},
                "id": _TEXT,
                "declared": _FLAG,
                "problems": _PROBLEMS,
                "served": _FLAG,
                "reload_error": _MAYBE,
                "reachable": {"type": ["boolean", "null"]},
                "scored": _FLAG,
                "planned": _FLAG,
                "answers": _TEXTS,
                "runtime": _MAYBE,
                "requests": {"type": "integer", "minimum": 0},
            }
        ),
        problems=(429,),
    ),
)
