"""`GET /v1/experts`: what is declared of each expert, and how it stands with this worker."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from coe.core import Expert
from coe.registry import ExpertSpec
from gateway.admin.operation import Operation, listed
from gateway.current import Current


class Experts:
    """Looked up when asked for, so a reload shows at once."""

    def __init__(self, current: Current) -> None:
        self._current = current

    async def list(self, _: Request) -> Response:
        serving = self._current.serving
        experts = serving.composition.experts
        data = [_told(spec, experts[spec.name]) for spec in serving.registry.experts]
        return Response(orjson.dumps({"object": "list", "data": data}), media_type="application/json")


def _told(spec: ExpertSpec, expert: Expert) -> dict[str, Any]:
    standing = expert.standing
    replicas = getattr(expert, "replicas", ())
    return {
        "id": spec.name,
        "object": "expert",
        "model": spec.model,
        "runtime": spec.runtime,
        "capabilities": sorted(spec.capabilities),
        "context_length": spec.context_length,
        "prices": {"input": spec.prices.input, "output": spec.prices.output},
        "up": standing.up,
        "load": standing.load,
        "p95_s": standing.p95,
        "in_flight": sum(replica.in_flight for replica in replicas),
        "replicas": [
            {"address": replica.address, "state": replica.state, "in_flight": replica.in_flight} for replica in replicas
        ],
    }


OPERATIONS = (
    Operation("listExperts", "GET", "/v1/experts", "How each expert stands", Experts.list, listed({"type": "object"})),
)
