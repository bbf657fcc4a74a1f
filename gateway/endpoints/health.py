"""`/health/live`, `/health/ready` and `/metrics`, for load balancers and Prometheus."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoints.operation import (
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

SCHEMAS: Schema = {
    "Live": object_schema({"status": {"const": "live"}}),
    "Ready": object_schema(
        {
            "status": {"enum": ["ready", "not ready"]},
            "router": TEXT,
            "config": TEXT,
            "reload_error": {
                "type": "boolean",
                "description": "The current declaration or promoted artifacts could not be loaded.",
            },
        }
    ),
}


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
        current = self._current
        content = {
            "status": "not ready" if current.leaving else "ready",
            "router": current.serving.composition.router.version,
            "config": current.serving.registry.digest,
            "reload_error": current.reload_error is not None,
        }
        return json_response(content, status=503 if current.leaving else 200)

    @operation("GET /metrics", "metrics", "Prometheus's text format.", TEXT, media_type="text/plain")
    async def metrics(self, _: Request) -> Response:
        """Metrics of all workers."""
        return Response(await self._metrics.page(), media_type=EXPOSITION_TYPE)
