"""`/health/live`: the process runs. `/health/ready`: it takes work."""

from __future__ import annotations

import orjson
from starlette.requests import Request
from starlette.responses import Response

from coe.composition import Composition


class Health:
    """Ready from the end of start-up until shutdown begins."""

    def __init__(self, composition: Composition) -> None:
        self._composition = composition
        self.ready = False

    async def live(self, _: Request) -> Response:
        return Response(b'{"status":"live"}', media_type="application/json")

    async def ready_now(self, _: Request) -> Response:
        body = {
            "status": "ready" if self.ready else "not ready",
            "router": self._composition.router.version,
            "config": self._composition.registry.digest,
        }
        return Response(orjson.dumps(body), status_code=200 if self.ready else 503, media_type="application/json")
