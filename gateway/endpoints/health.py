"""`/health`, `/health/live`, `/health/ready` and `/metrics`, for load balancers and Prometheus; and `/`, a list of
links."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from coe import __version__
from gateway.endpoints.operation import (
    BOOLEAN,
    COUNT,
    JSON,
    TEXT,
    Schema,
    Success,
    json_response,
    object_schema,
    operation,
    ref,
)
from gateway.observability.metrics import EXPOSITION_TYPE
from gateway.parts import Parts

_READY: Schema = {
    "status": {"enum": ["ready", "not ready"]},
    "router": TEXT,
    "config": TEXT,
    "reload_error": BOOLEAN | {"description": "The current declaration or promoted artifacts could not be loaded."},
}
SCHEMAS: Schema = {
    "Live": object_schema({"status": {"const": "live"}}),
    "Ready": object_schema(_READY),
    "Health": object_schema(
        {
            **_READY,
            "live": {"const": True},
            "ready": BOOLEAN,
            "experts": COUNT | {"description": "Number of declared experts."},
            "experts_up": COUNT | {"description": "Number of them that answer, as far as this process knows."},
        }
    ),
    "Root": object_schema(dict.fromkeys(("name", "version", "models", "page", "health", "openapi"), TEXT)),
}
_LINKS = {"models": "/v1/models", "page": "/ui/", "health": "/health", "openapi": "/openapi.json"}


class Health:
    """Ready until the process begins to drain. A failed reload does not change that: the last good state stays in
    service, and `reload_error` reports it."""

    def __init__(self, parts: Parts) -> None:
        self._current, self._metrics = parts.current, parts.metrics

    @operation("GET /health/live", "live", "The process runs.", ref("Live"), scope="public")
    async def live(self, _: Request) -> Response:
        """Liveness: the process runs."""
        return json_response({"status": "live"})

    @operation(
        "GET /health/ready",
        "ready",
        "The gateway accepts requests.",
        ref("Ready"),
        responses={503: Success("The gateway is starting or draining.", {JSON: ref("Ready")})},
        scope="public",
    )
    async def ready(self, _: Request) -> Response:
        """Readiness: the gateway accepts requests."""
        return json_response(self._readiness(), status=503 if self._current.leaving else 200)

    @operation(
        "GET /health",
        "health",
        "The gateway accepts requests.",
        ref("Health"),
        responses={503: Success("The gateway is starting or draining.", {JSON: ref("Health")})},
        scope="public",
    )
    async def health(self, _: Request) -> Response:
        """Liveness, readiness and the number of experts that answer, in one."""
        experts = self._current.serving.composition.experts.values()
        up = sum(expert.health.up for expert in experts)
        content = {**self._readiness(), "live": True, "ready": not self._current.leaving}
        content |= {"experts": len(experts), "experts_up": up}
        return json_response(content, status=503 if self._current.leaving else 200)

    def _readiness(self) -> dict[str, Any]:
        current = self._current
        return {
            "status": "not ready" if current.leaving else "ready",
            "router": current.serving.composition.router.version,
            "config": current.serving.registry.digest,
            "reload_error": current.reload_error is not None,
        }

    @operation(
        "GET /",
        "root",
        "Links to the API, the dashboard and the health pages.",
        ref("Root"),
        responses={307: Success("Redirects browsers to the dashboard.", {})},
        scope="public",
    )
    async def root(self, request: Request) -> Response:
        """Redirects browsers to the dashboard; returns links to other clients."""
        vary = {"vary": "accept"}
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("ui/", status_code=307, headers=vary)  # relative: works behind a proxy's prefix
        response = json_response({"name": "Composition of Experts", "version": __version__, **_LINKS})
        response.headers.update(vary)
        return response

    @operation("GET /metrics", "metrics", "Prometheus's text format.", TEXT, media_type="text/plain")
    async def metrics(self, _: Request) -> Response:
        """Metrics of all workers."""
        return Response(await self._metrics.page(), media_type=EXPOSITION_TYPE)
