"""`/health/live`, `/health/ready` and `/metrics`, for load balancers and Prometheus."""

from __future__ import annotations

from operator import attrgetter

from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoints.operation import (
    JSON,
    Operation,
    Schema,
    Success,
    json_response,
    json_success,
    object_schema,
    ref,
)
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
        "live",
        "GET",
        "/health/live",
        "Liveness: the process runs",
        Health.live,
        json_success("The process runs.", ref("Live")),
        resource=Health,
        scope="public",
    ),
    Operation(
        "ready",
        "GET",
        "/health/ready",
        "Readiness: the gateway accepts requests",
        Health.ready,
        {
            200: Success("The gateway accepts requests.", {JSON: ref("Ready")}),
            503: Success("The gateway is starting or draining.", {JSON: ref("Ready")}),
        },
        resource=Health,
        scope="public",
    ),
    Operation(
        "metrics",
        "GET",
        "/metrics",
        "Metrics of all workers",
        Metrics.endpoint,
        {200: Success("Prometheus's text format.", {"text/plain": _TEXT})},
        resource=attrgetter("metrics"),
    ),
)
