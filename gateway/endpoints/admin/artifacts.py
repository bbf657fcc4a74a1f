"""`/v1/artifacts`: what was trained, planned and learnt, what is in use, and moving it: the same as `coe promote`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from coe.artifacts.redis import mirror, open_shared
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError, ArtifactNotFound, ArtifactRefused, ConfigError, JobUnavailable
from coe.registry import load
from coe.runtime import promotion
from coe.runtime.promotion import VersionChange
from coe.runtime.versions import KINDS, VersionCatalog
from coe.settings import Settings
from gateway.endpoints.admin.operation import Operation, Schema, listed, whole
from gateway.observability.state_metrics import ARTIFACT_INFO, RELOAD_FAILED
from gateway.request.validation import arrived, checked

if TYPE_CHECKING:
    from gateway.parts import Parts

MAX_BODY = 16 * 1024
RETRY_AFTER = 2.0
_log = logging.getLogger("gateway")

_Version = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
_Why = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    why: _Why
    """Kept in the history."""
    instead_of: _Version | None = None
    """What was in use when this was decided, left out for whatever is: where another is by now, nothing is moved."""


class RollBack(_Body):
    """Go back to what was in use before."""


class Promote(_Body):
    """Put a published version into use."""

    version: _Version


class Artifacts:
    """Manifests are read once, and only when somebody asks; one move is made at a time."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._shelves = {kind: VersionCatalog(parts.settings.artifacts, kind) for kind in KINDS}
        self._moving = asyncio.Lock()

    async def list(self, _: Request) -> Response:
        """`GET /v1/artifacts`."""
        data = await asyncio.to_thread(lambda: [shelf.list_versions() for shelf in self._shelves.values()])
        served, failed = await self._served()
        serving, error = self._parts.current.serving, self._parts.current.reload_error
        for one in data:
            one["served"] = served.get(one["kind"], {})
            one["unused"] = one["kind"] in serving.unused
        elsewhere = "another worker could not take it over; the log of this gateway says why"
        return _json({"object": "list", "reload_error": error or (elsewhere if failed else None), "data": data})

    async def one(self, request: Request) -> Response:
        """`GET /v1/artifacts/{kind}/{version}`."""
        shelf = self._shelf(request)
        return _json(await asyncio.to_thread(shelf.details, request.path_params["version"]))

    async def promote(self, request: Request) -> Response:
        """`POST /v1/artifacts/{kind}/promote`."""
        kind = self._shelf(request).kind
        asked = checked(Promote, await arrived(request, limit=MAX_BODY))
        if asked.version not in ArtifactStore(self._parts.settings.artifacts, kind).versions():
            raise ArtifactNotFound(f"no {kind} {asked.version!r} is published here", param="version")
        return await self._move(
            kind,
            asked,
            lambda settings, store: promotion.promote(settings, store, kind, asked.version, why=asked.why),
        )

    async def roll_back(self, request: Request) -> Response:
        """`POST /v1/artifacts/{kind}/rollback`."""
        kind = self._shelf(request).kind
        asked = checked(RollBack, await arrived(request, limit=MAX_BODY))
        return await self._move(
            kind, asked, lambda settings, store: promotion.roll_back(settings, store, kind, why=asked.why)
        )

    async def _move(
        self, kind: str, asked: _Body, move: Callable[[Settings, ArtifactStore], VersionChange]
    ) -> Response:
        if self._moving.locked():
            raise JobUnavailable(
                "another version is being put into use; look what became of it", retry_after=RETRY_AFTER
            )
        async with self._moving:
            moved = await asyncio.shield(asyncio.to_thread(_moved, self._parts.settings, kind, asked.instead_of, move))
        _log.warning("%s in use: %s -> %s, by an administrator: %s", kind, moved.was, moved.in_use, asked.why)
        return _json({"object": "move", "kind": kind, "was": moved.was, "in_use": moved.in_use})

    def _shelf(self, request: Request) -> VersionCatalog:
        kind = request.path_params["kind"]
        if kind not in self._shelves:
            raise ArtifactNotFound(f"there is no kind of artifact {kind[:64]!r}; there are {', '.join(KINDS)}")
        return self._shelves[kind]

    async def _served(self) -> tuple[dict[str, dict[str, int]], bool]:
        """By kind how many of this gateway's workers serve with which version, and whether one could not take over what
        is in use now."""
        families = await self._parts.metrics.families()
        served: dict[str, dict[str, int]] = {}
        for (kind, version), (workers,) in families[ARTIFACT_INFO].cells.items():
            served.setdefault(kind, {})[version] = round(workers)
        return served, any(failed for (failed,) in families[RELOAD_FAILED].cells.values())


def _moved(
    settings: Settings, kind: str, instead_of: str | None, move: Callable[[Settings, ArtifactStore], VersionChange]
) -> VersionChange:
    with _refusing():
        share = open_shared(load(settings.config, environ=settings.environ).artifacts)
        store = ArtifactStore(settings.artifacts, kind, share)
        try:
            mirror([store])
            if instead_of is not None and (now := store.in_use()) != instead_of:
                raise ArtifactError(f"{kind} {now or 'none'} is in use by now, not {instead_of}; look again")
            return move(settings, store)
        finally:
            if share is not None:
                share.close()


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except (ArtifactError, ConfigError) as error:
        raise ArtifactRefused(str(error)) from error


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


_TEXT: Schema = {"type": "string"}
_MAYBE: Schema = {"type": ["string", "null"]}
_LIST = listed({"type": "object"})
_LIST["properties"]["reload_error"] = _MAYBE
_MOVE = whole({"object": {"const": "move"}, "kind": _TEXT, "was": _MAYBE, "in_use": _MAYBE})
_ONE = whole(
    {"object": {"const": "artifact"}, "kind": _TEXT, "version": _TEXT, "damaged": _MAYBE, "metrics": {"type": "object"}}
)
_MOVING = (400, 404, 408, 409, 413, 415, 503)

OPERATIONS = (  # what has a name before what any version may have
    Operation("listArtifacts", "GET", "/v1/artifacts", "What is published and in use", Artifacts.list, _LIST),
    Operation(
        "promoteArtifact",
        "POST",
        "/v1/artifacts/{kind}/promote",
        "Put a version into use",
        Artifacts.promote,
        _MOVE,
        body=Promote,
        problems=_MOVING,
    ),
    Operation(
        "rollBackArtifact",
        "POST",
        "/v1/artifacts/{kind}/rollback",
        "Go back to what was in use before",
        Artifacts.roll_back,
        _MOVE,
        body=RollBack,
        problems=_MOVING,
    ),
    Operation(
        "readArtifact",
        "GET",
        "/v1/artifacts/{kind}/{version}",
        "One version with its report",
        Artifacts.one,
        _ONE,
        problems=(404,),
    ),
)
