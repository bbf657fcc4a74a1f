"""Asks this machine's gateway if it is ready, for `coe status`."""

from __future__ import annotations

from http import HTTPStatus
from http.client import HTTPConnection, HTTPException

from coe.settings import Settings

TIMEOUT_SECONDS = 2.0


def gateway_state(settings: Settings) -> dict[str, str]:
    """The address of this machine's gateway, and `ready`, `not ready` or `no answer`."""
    connection = HTTPConnection(settings.reachable_host, settings.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/health/ready")
        state = "ready" if connection.getresponse().status == HTTPStatus.OK else "not ready"
    except (OSError, HTTPException):
        state = "no answer"
    finally:
        connection.close()
    return {"address": f"{settings.reachable_host}:{settings.port}", "state": state}
