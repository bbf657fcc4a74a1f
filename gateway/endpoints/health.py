"""`/health/live`, `/health/ready` and `/metrics`, for load balancers and Prometheus."""

from __future__ import annotations

from operator import attrgetter

from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoints.http import JSON, json_response
from gateway.endpoints.operation import Operation, Schema, Success, json_success, object_schema, ref
from gateway.observability.metrics import Metrics
from gateway.parts import Parts


class Health:
    """Ready until the process begins to drain. A failed reload does not change that: the last good state stays in
    service, and `reload_error` reports it."""

    def __init__(self, parts: Parts) -> None:
        self._current = parts.current

    async def live(self, _: Request) -> Response:
        """`GET /health/live`: the process runs."""
        return json_response({"status": "live"})

    async def ready(self, _: Request) -> Response:
        """`GET /health/ready`: the process accepts requests."""
        current = self._current
        content = {
            "status": "not ready" if current.leaving else "ready",
            "router": current.serving.composition.router.version,
            "config": current.serving.registry.digest,
            "reload_error": current.reload_error is not None,
        }
        return json_response(content, status=503 if current.leaving else 200)


_TEXT: Schema = {"type": "string"}
SCHEMAS: Schema = {
    "Live": object_schema({"status": {"const": "live"}}),
    "Ready": object_schema(
        {
            "status": {"enum": ["ready", "not ready"]},
            "router": _TEXT,
            "config": _TEXT,
            "reload_error": {
                "type": "boolean",
                "description": "The current declaration or promoted artifacts could not be loaded.",
            },
        }
    ),
}
OPERATIONS = (
    Operation(
        name="live",
        method="GET",
        path="/health/live",
        summary="Liveness: the process runs",
        resource=Health,
        handler=Health.live,
        scope="public",
        responses=json_success("The process runs.", ref("Live")),
    ),
    Operation(
        name="ready",
        method="GET",
        path="/health/ready",
        summary="Readiness: the gateway accepts requests",
        resource=Health,
        handler=Health.ready,
        scope="public",
        responses={
            200: Success("The gateway accepts requests.", {JSON: ref("Ready")}),
            503: Success("The gateway is starting or draining.", {JSON: ref("Ready")}),
        },
    ),
    Operation(
        name="metrics",
        method="GET",
        path="/metrics",
        summary="Metrics of all workers",
        resource=attrgetter("metrics"),
        handler=Metrics.endpoint,
        scope="admin",
        responses={200: Success("Prometheus's text format.", {"text/plain": _TEXT})},
    ),
)
