"""`/health/live`: the process runs. `/health/ready`: it takes work."""

from __future__ import annotations

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.current import Current


class Health:
    """Ready from the end of start-up until shutdown begins."""

    def __init__(self, current: Current) -> None:
        self._current = current
        self.ready = False

    async def live(self, _: Request) -> Response:
        return Response(b'{"status":"live"}', media_type="application/json")

    async def ready_now(self, _: Request) -> Response:
        body = {
            "status": "ready" if self.ready else "not ready",
            "router": self._current.serving.composition.router.version,
            "config": self._current.serving.registry.digest,
        }
        return Response(orjson.dumps(body), status_code=200 if self.ready else 503, media_type="application/json")
