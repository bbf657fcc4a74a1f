"""`/health/live`: the process runs. `/health/ready`: it takes work."""

from __future__ import annotations

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.serving_state import Current


class Health:
    """Ready from the end of start-up until the process begins to leave. A failed reload does not change that: the last
    good state serves on, and `reload_error` says that it is not what is declared."""

    def __init__(self, current: Current) -> None:
        self._current = current
        self.ready = False

    async def live(self, _: Request) -> Response:
        return Response(b'{"status":"live"}', media_type="application/json")

    async def ready_now(self, _: Request) -> Response:
        current = self._current
        ready = self.ready and not current.leaving
        body = {
            "status": "ready" if ready else "not ready",
            "router": current.serving.composition.router.version,
            "config": current.serving.registry.digest,
            "reload_error": current.reload_error is not None,
        }
        return Response(orjson.dumps(body), status_code=200 if ready else 503, media_type="application/json")
