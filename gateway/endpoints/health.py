"""`/health`, `/health/live`, `/health/ready` and `/metrics`, for load balancers and Prometheus; and `/`, a list of
links.

A gateway is ready until its process begins to drain. A failed reload does not change that: the last good state stays in
service, and `reload_error` reports it.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from coe import __version__
from gateway.endpoints.handler import json_response
from gateway.services import Services

_LINKS = {"models": "/v1/models", "page": "/ui/", "health": "/health", "openapi": "/openapi.json"}


async def live(_: Request) -> Response:
    """The process runs."""
    return json_response({"status": "live"})


async def ready(services: Services, _: Request) -> Response:
    """The gateway accepts requests."""
    return json_response(_readiness(services), status=503 if services.leaving else 200)


async def health(services: Services, _: Request) -> Response:
    """Liveness, readiness and the number of experts that answer."""
    experts, leaving = services.snapshot.composition.experts.values(), services.leaving
    counts = {"experts": len(experts), "experts_up": sum(expert.health.up for expert in experts)}
    body = _readiness(services) | {"live": True, "ready": not leaving} | counts
    return json_response(body, status=503 if leaving else 200)


def _readiness(services: Services) -> dict[str, Any]:
    snapshot = services.snapshot
    return {
        "status": "not ready" if services.leaving else "ready",
        "router": snapshot.composition.router.version,
        "config": snapshot.registry.digest,
        "reload_error": services.reload_error is not None,
    }


async def root(request: Request) -> Response:
    """Redirects browsers to the dashboard; returns links to other clients."""
    vary = {"vary": "accept"}
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("ui/", status_code=307, headers=vary)  # relative: works behind a proxy's prefix
    return json_response({"name": "Composition of Experts", "version": __version__, **_LINKS}, headers=vary)


async def metrics(services: Services, _: Request) -> Response:
    """Metrics of all workers, in Prometheus's text format."""
    return Response(await services.metrics.page(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
