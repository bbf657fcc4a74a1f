"""Guards endpoints: only callers whose key has the right scope may call them, once keys are declared."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from coe.core import Scope
from coe.errors import RequestError
from gateway.errors import body_of, headers_of, status_of
from gateway.request.body import ClientLeftError
from gateway.serving_state import ServingState

Endpoint = Callable[[Request], Awaitable[Response]]


def guarded(endpoint: Endpoint, current: ServingState, *, scope: Scope | None) -> Endpoint:
    """Wraps `endpoint` for callers whose key has `scope` (None: any known key); others get 401 or 403. A RequestError
    that it raises becomes the response."""

    async def answer(request: Request) -> Response:
        try:
            current.serving.access.identify(request.scope["headers"], scope)
            return await endpoint(request)
        except ClientLeftError:
            return Response(status_code=400)
        except RequestError as error:
            response = Response(body_of(error), status_code=status_of(error), media_type="application/json")
            response.raw_headers += headers_of(error)
            return response

    return answer
