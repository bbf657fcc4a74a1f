"""The table of all endpoints. `openapi.json` describes them; a test compares the two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from coe import __version__
from coe.core import PATHS, Api
from gateway.chat import ChatEndpoint
from gateway.dialects.chat import CHAT, COMPLETIONS, EMBEDDINGS, PASS_THROUGH
from gateway.dialects.messages import MESSAGES
from gateway.dialects.responses import RESPONSES
from gateway.endpoints import health, models, stored_responses
from gateway.endpoints.admin import experts, keys
from gateway.endpoints.admin.artifacts import Artifacts
from gateway.endpoints.admin.config import Config
from gateway.endpoints.admin.experts import read_map
from gateway.endpoints.admin.records import Records, Reports
from gateway.endpoints.documents import Documents
from gateway.endpoints.feedback import FeedbackEndpoint
from gateway.endpoints.handler import Authorization, Handler, guarded, json_response
from gateway.endpoints.route import count_tokens_endpoint, route_endpoint
from gateway.services import Services

_OTHER_PATHS: Mapping[Api, tuple[str, ...]] = {
    "rerank": ("/rerank", "/v2/rerank"),
    "score": ("/score",),
    "tokenize": ("/v1/tokenize",),
}
"""Paths of servers and clients that leave out the version, or have another."""
_Row = tuple[str, Authorization, Handler]


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document."""
    found: dict[str, Any] = orjson.loads(Path(__file__).with_name("openapi.json").read_bytes())
    found["info"]["version"] = __version__
    return found


async def _openapi(_: Request) -> Response:
    return json_response(document())


def _rows(services: Services) -> Iterator[_Row]:
    """Method and path, what the key needs, and the handler."""
    documents, records, artifacts = Documents(services), Records(services), Artifacts(services)
    config, reports = Config(services), Reports(services)
    yield from (
        ("GET /", "public", health.root),
        ("GET /health", "public", partial(health.health, services)),
        ("GET /health/live", "public", health.live),
        ("GET /health/ready", "public", partial(health.ready, services)),
        ("GET /openapi.json", "public", _openapi),
        ("GET /metrics", "admin", partial(health.metrics, services)),
        ("POST /v1/feedback", "feedback", FeedbackEndpoint(services).post),
        ("GET /v1/documents", "admin", documents.list),
        ("POST /v1/documents", "admin", documents.upload),
        ("POST /v1/documents/search", "admin", documents.search),
        ("DELETE /v1/documents/{id:path}", "admin", documents.delete),
        ("GET /v1/report", "admin", reports.report),
        ("GET /v1/residency", "admin", reports.residency),
        ("GET /v1/records", "admin", records.list),
        ("GET /v1/records/{id}", "admin", records.get),
        ("GET /v1/map", "admin", partial(read_map, services)),
        ("GET /v1/artifacts", "admin", artifacts.list),
        ("GET /v1/artifacts/{kind}/{version}", "admin", artifacts.get),
        ("POST /v1/artifacts/{kind}/promote", "admin", artifacts.promote),
        ("POST /v1/artifacts/{kind}/rollback", "admin", artifacts.roll_back),
        ("GET /v1/recipes", "admin", partial(experts.list_recipes, services)),
        ("GET /v1/experts", "admin", partial(experts.list_experts, services)),
        ("GET /v1/models", "any_key", partial(models.list_models, services)),
        ("GET /v1/models/{model:path}", "any_key", partial(models.get_model, services)),
        ("GET /v1/responses/{id}", "chat", partial(stored_responses.get, services)),
        ("DELETE /v1/responses/{id}", "chat", partial(stored_responses.delete, services)),
        ("GET /v1/keys", "admin", partial(keys.list_keys, services)),
        ("POST /v1/keys", "admin", partial(keys.issue_key, services)),
        ("DELETE /v1/keys/{name}", "admin", partial(keys.revoke_key, services)),
        ("GET /v1/config", "admin", config.get),
        ("POST /v1/config/check", "admin", config.check),
    )


def endpoint_routes(services: Services) -> list[Route]:
    """One route for each path. The first match wins, so fixed names precede parameters, and long paths precede short
    ones."""
    by_path: dict[str, dict[str, Handler]] = {}
    for row, needs, handler in _rows(services):
        method, path = row.split()
        by_path.setdefault(path, {})[method] = guarded(handler, services, needs)
    routes = [Route(path, _by_method(handlers), methods=list(handlers)) for path, handlers in by_path.items()]
    for path, endpoint in _chat_endpoints(services):
        routes.append(Route(path, endpoint, methods=["POST"]))
    return sorted(routes, key=lambda route: (route.path.count("{"), -len(route.path)))


def _by_method(handlers: Mapping[str, Handler]) -> Handler:
    async def answer(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return answer if len(handlers) > 1 else next(iter(handlers.values()))


def _chat_endpoints(services: Services) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The paths of ASGI applications that take a chat and check its key."""
    yield "/v1/route", route_endpoint(services)
    yield "/v1/messages/count_tokens", count_tokens_endpoint(services)
    for dialect in (CHAT, COMPLETIONS, RESPONSES, MESSAGES, EMBEDDINGS, *PASS_THROUGH.values()):
        endpoint = ChatEndpoint(services, dialect)
        for path in (PATHS[dialect.api], *_OTHER_PATHS.get(dialect.api, ())):
            yield path, endpoint
