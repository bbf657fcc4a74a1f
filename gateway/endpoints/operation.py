"""One HTTP operation: its route, its authorization and its OpenAPI entry are derived from this value.

An endpoint module declares its operations next to the code that answers them, with the schemas and responses defined
here. `operations.py` collects them and makes the routes; `openapi.py` writes the OpenAPI document, which the reference
page is generated from.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar, cast

import orjson
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from coe.core import Scope
from gateway.parts import Parts
from gateway.request.body import Body, validated

JSON, EVENTS = "application/json", "text/event-stream"


def json_response(content: Any, *, status: int = 200) -> Response:
    """A response with `content` as its JSON body; bytes are taken as JSON already."""
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    return Response(body, status_code=status, media_type=JSON)


def query_of(request: Request, model: type[Body]) -> Body:
    """The query string as a value of `model`. Raises InvalidRequest, which names the parameter."""
    return validated(model, orjson.dumps(dict(request.query_params)))


Method = Literal["GET", "POST", "DELETE"]
Schema = dict[str, Any]
"""A JSON schema, or a part of the OpenAPI document."""
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
BOOLEAN: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
TEXTS: Schema = {"type": "array", "items": TEXT}
OBJECTS: Schema = {"type": "array", "items": OBJECT}

Authorization = Scope | Literal["public", "any_key"]
"""The scope that a key needs; `any_key` accepts every key, and `public` needs none."""

Handler = Callable[[Any, Request], Awaitable[Response]]
"""A method of a resource."""
HandlerT = TypeVar("HandlerT", bound=Handler)

PROBLEMS: Mapping[int, str] = {
    400: "The request is wrong; `param` names the field.",
    404: "No such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "The expert refuses the request.",
    429: "Too many requests, at the gateway, for this key or at the expert.",
    431: "The headers are too large.",
    500: "A bug in the gateway.",
    501: "A required package is not installed on the gateway.",
    502: "The expert returned an invalid response.",
    503: "No expert can be reached, or the gateway is shutting down.",
    504: "No answer in time.",
}
"""Meaning of an error status, where an operation does not state its own."""
BODY_STATUSES, QUERY_STATUSES = (400, 408, 413, 415), (400,)
"""Error statuses of every operation with a body, or with a query string."""
CALL_PROBLEMS = {status: text for status, text in PROBLEMS.items() if status != 501}
"""Statuses of operations that take a chat."""


@dataclass(frozen=True, slots=True)
class Success:
    """A successful response: its description, and the schema of its content by media type."""

    description: str
    content: Mapping[str, Schema]
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names of header components, by header."""


@dataclass(frozen=True, slots=True)
class Operation:
    """The operation of `method path`; `name` is unique among all operations.

    `handler` is the method of the resource that answers. Without a handler, the resource is an ASGI application that
    checks `scope` itself, as a separate step.
    """

    name: str
    method: Method
    path: str
    summary: str
    responses: Mapping[int, Success]
    _: KW_ONLY
    resource: Callable[[Parts], Any]
    """Built once from the parts of the application, and shared by all operations that name it."""
    handler: Handler | None = None
    scope: Authorization = "admin"
    body: type[BaseModel] | str | None = None
    """The model of the request body, or the name of its schema component."""
    other_bodies: Mapping[str, str] = field(default_factory=dict)
    """Names of the schema components of bodies that are not JSON, by media type."""
    query: type[BaseModel] | None = None
    """The model of the query string."""
    request_headers: tuple[str, ...] = ()
    """Names of parameter components."""
    problems: Mapping[int, str] = field(default_factory=dict)
    """Meanings of error statuses, besides those of authorization."""
    error: str = "Error"
    """The schema component of error bodies."""
    also: tuple[str, ...] = ()
    """Other paths of the operation, as clients of other providers build them."""
    limited: bool = False
    """Counts against the limits of a key, which the response headers report."""


def operation(
    route: str, name: str, description: str, schema: Schema, *, media_type: str = JSON, **options: Any
) -> Callable[[HandlerT], HandlerT]:
    """Declares a method of a resource as the handler of an Operation. Its docstring has the summary as first line.

    `route` is a method and a path; `description` and `schema` are those of the response. `options` are other fields of
    Operation. The error statuses of every body or query need not be named in `problems`.
    """
    verb, path = route.split()
    responses = {200: Success(description, {media_type: schema}), **options.pop("responses", {})}
    statuses = BODY_STATUSES if "body" in options else QUERY_STATUSES if "query" in options else ()
    found = problems(*statuses) | options.pop("problems", {})

    def declare(handler: HandlerT) -> HandlerT:
        summary = (handler.__doc__ or "").partition("\n")[0].removesuffix(".")
        handler.__dict__["operation"] = partial(
            Operation, name, cast(Method, verb), path, summary, responses, handler=handler, problems=found, **options
        )
        return handler

    return declare


def operations_of(resource: type) -> tuple[Operation, ...]:
    """The operations that the methods of a resource declare, in the order of the methods."""
    declared = [vars(member)["operation"] for member in vars(resource).values() if hasattr(member, "operation")]
    return tuple(make(resource=resource) for make in declared)


def problems(*statuses: int, **texts: str) -> dict[int, str]:
    """Meanings of error statuses: the usual ones, and own texts as `_404="No such record."`."""
    own = {int(name.removeprefix("_")): text for name, text in texts.items()}
    return {status: PROBLEMS[status] for status in statuses} | own


def json_success(description: str, schema: Schema) -> dict[int, Success]:
    """The responses of an operation that answers 200 with JSON."""
    return {200: Success(description, {JSON: schema})}


def ref(name: str, *, section: str = "schemas") -> Schema:
    """A reference to a component."""
    return {"$ref": f"#/components/{section}/{name}"}


def object_schema(properties: Schema) -> Schema:
    """The schema of an object that has all of these properties."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def list_schema(item: Schema) -> Schema:
    """The schema of a list in OpenAI's form."""
    return object_schema({"object": {"const": "list"}, "data": {"type": "array", "items": item}})
