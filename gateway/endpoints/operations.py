"""The table of all HTTP operations, and what follows from it: routes, their authorization, and `GET /openapi.json`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from coe.core import Scope
from coe.errors import RequestError
from coe.registry import Registry
from gateway.endpoints import (
    chat,
    documents,
    feedback,
    health,
    models,
    openapi,
    pass_through,
    route,
    stored_responses,
)
from gateway.endpoints.admin import artifacts, config, experts, keys, mapping, records, report, residency, stats
from gateway.endpoints.chat import CHAT_SCHEMAS
from gateway.endpoints.operation import OBJECT, Operation, Schema, json_response, operation, operations_of
from gateway.errors import body_of, headers_of, status_of
from gateway.parts import Parts
from gateway.request.body import ClientLeftError
from gateway.serving_state import Serving, ServingState

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


_SCHEMAS: Schema = (
    CHAT_SCHEMAS
    | pass_through.SCHEMAS
    | route.SCHEMAS
    | feedback.SCHEMAS
    | documents.SCHEMAS
    | models.SCHEMAS
    | health.SCHEMAS
    | stored_responses.SCHEMAS
)


class OpenApi:
    """`GET /openapi.json`; the document is built once for each serving state."""

    def __init__(self, parts: Parts) -> None:
        self._current = parts.current
        self._written: tuple[Serving | None, bytes] = (None, b"")

    @operation("GET /openapi.json", "openapi", "The OpenAPI document.", OBJECT, scope="public")
    async def get(self, _: Request) -> Response:
        """This document."""
        serving = self._current.serving
        if self._written[0] is not serving:
            self._written = (serving, orjson.dumps(document(serving.registry)))
        return json_response(self._written[1])


_RESOURCES: tuple[type, ...] = (
    *(
        documents.Documents,
        stats.Stats,
        report.Report,
        residency.Devices,
        records.Records,
        mapping.Map,
        artifacts.Artifacts,
    ),
    *(experts.Experts, experts.Onboarding, keys.Keys, config.Config, models.Models, health.Health, OpenApi),
    stored_responses.StoredResponses,
)
OPERATIONS: tuple[Operation, ...] = (
    *(*chat.OPERATIONS, *pass_through.OPERATIONS, *route.OPERATIONS, *feedback.OPERATIONS),
    *(one for resource in _RESOURCES for one in operations_of(resource)),
)


def document(registry: Registry) -> Schema:
    """The OpenAPI document of a gateway with this declaration."""
    return openapi.document(OPERATIONS, _SCHEMAS, registry)


def operation_routes(parts: Parts) -> list[Route]:
    """Build one route for each path. The first match wins, so fixed names precede parameters, and long paths precede
    short ones."""
    resources: dict[Callable[[Parts], Any], Any] = {}
    by_path: dict[str, list[Operation]] = {}
    for one in OPERATIONS:
        if one.resource not in resources:
            resources[one.resource] = one.resource(parts)
        for path in (one.path, *one.also):
            by_path.setdefault(path, []).append(one)
    ordered = sorted(by_path, key=lambda path: (path.count("{"), -len(path)))
    return [_route(path, by_path[path], resources, parts.current) for path in ordered]


def _route(path: str, operations: list[Operation], resources: Mapping[Any, Any], current: ServingState) -> Route:
    described = any(one.path == path for one in operations)
    endpoints: dict[str, Any] = {one.method: _endpoint(one, resources[one.resource], current) for one in operations}
    if len(endpoints) == 1:
        (method,) = endpoints
        return Route(path, endpoints[method], methods=[method], include_in_schema=described)

    async def by_method(request: Request) -> Response:
        endpoint: Endpoint = endpoints["GET" if request.method == "HEAD" else request.method]
        return await endpoint(request)

    return Route(path, by_method, methods=list(endpoints), include_in_schema=described)


def _endpoint(one: Operation, resource: Any, current: ServingState) -> Any:
    if one.handler is None:
        return resource
    answer: Endpoint = partial(one.handler, resource)
    if one.scope == "public":
        return answer
    return guarded(answer, current, scope=None if one.scope == "any_key" else one.scope)
