"""`/v1/artifacts`: published versions of routers, plans and gates, and their promotion and rollback.

A promotion passes the same checks as `coe promote`; workers load the version as after any other promotion.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coe.artifacts import versions
from coe.artifacts.artifact_sync import open_declared
from coe.artifacts.manifest import ARTIFACT_KINDS
from coe.artifacts.store import ArtifactStore, mirror
from coe.artifacts.versions import VersionCatalog, VersionChange
from coe.errors import ArtifactError, ArtifactNotFound, ArtifactRefused, ConfigError, JobUnavailable
from coe.settings import Settings
from gateway.endpoints.handler import json_of, json_response
from gateway.observability.state_metrics import ARTIFACT_INFO, DEGRADED
from gateway.request.body import RequestModel
from gateway.services import Services

MAX_BODY_BYTES = 16 * 1024
RETRY_AFTER = 2.0
_log = logging.getLogger("gateway")

_Version = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
_Reason = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$")]


class _MoveRequest(RequestModel):
    why: _Reason
    """Stored in the history."""
    expected_version: _Version | None = None
    """The version that must be in use for the request to take effect; by default any."""


class RollbackRequest(_MoveRequest):
    """Returns to the version that was in use before."""


class PromoteRequest(_MoveRequest):
    """Puts a published version into use."""

    version: _Version


class Artifacts:
    """Reads each manifest once, on demand; makes one promotion or rollback at a time."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._versions = {kind: VersionCatalog(services.settings.artifacts, kind) for kind in ARTIFACT_KINDS}
        self._moving = asyncio.Lock()

    async def list(self, _: Request) -> Response:
        """List published versions, what is in use, and the history."""
        data = await asyncio.to_thread(lambda: [catalog.list_versions() for catalog in self._versions.values()])
        families = await self._services.metrics.families()
        for one in data:
            one["served"], one["unused"] = {}, one["kind"] in self._services.snapshot.unused
        by_kind = {one["kind"]: one["served"] for one in data}
        for (kind, version), (workers,) in families[ARTIFACT_INFO].cells.items():
            by_kind.get(kind, {})[version] = round(workers)
        error = self._services.reload_error
        if error is None and families[DEGRADED].cells.get(("reload",), [0.0])[0]:
            error = "another worker could not load what is in use; see the log of this gateway"
        return json_response({"object": "list", "reload_error": error, "data": data})

    async def promote(self, request: Request) -> Response:
        """Promote a version."""
        kind = self._catalog(request).kind
        body = await json_of(request, PromoteRequest, limit=MAX_BODY_BYTES)
        if body.version not in ArtifactStore(self._services.settings.artifacts, kind).versions():
            raise ArtifactNotFound(f"no {kind} {body.version!r} is published here", param="version")
        return await self._move(kind, body, partial(versions.promote, version=body.version))

    async def roll_back(self, request: Request) -> Response:
        """Return to the version that was in use before."""
        kind = self._catalog(request).kind
        return await self._move(kind, await json_of(request, RollbackRequest, limit=MAX_BODY_BYTES), versions.roll_back)

    async def get(self, request: Request) -> Response:
        """Read one version with its report."""
        catalog = self._catalog(request)
        return json_response(await asyncio.to_thread(catalog.details, request.path_params["version"]))

    async def _move(self, kind: str, body: _MoveRequest, move: Callable[..., VersionChange]) -> Response:
        if self._moving.locked():
            why = "another promotion or rollback is in progress; check its result first"
            raise JobUnavailable(why, retry_after=RETRY_AFTER)
        async with self._moving:
            moved = await asyncio.shield(asyncio.to_thread(_make_move, self._services.settings, kind, body, move))
        _log.warning("%s in use: %s -> %s, by an administrator: %s", kind, moved.was, moved.in_use, body.why)
        return json_response({"object": "move", "kind": kind, "was": moved.was, "in_use": moved.in_use})

    def _catalog(self, request: Request) -> VersionCatalog:
        kind = request.path_params["kind"]
        if kind not in self._versions:
            raise ArtifactNotFound(f"there is no kind of artifact {kind[:64]!r}; there are {', '.join(ARTIFACT_KINDS)}")
        return self._versions[kind]


def _make_move(settings: Settings, kind: str, body: _MoveRequest, move: Callable[..., VersionChange]) -> VersionChange:
    expected = body.expected_version
    try:
        share = open_declared(settings)
        try:
            store = ArtifactStore(settings.artifacts, kind, share)
            mirror([store])
            if expected is not None and (now := store.in_use()) != expected:
                raise ArtifactError(f"{kind} {now or 'none'} is in use now, not {expected}; reload and try again")
            return move(settings, store, kind, why=body.why)
        finally:
            if share is not None:
                share.close()
    except (ArtifactError, ConfigError) as error:
        raise ArtifactRefused(str(error)) from error
