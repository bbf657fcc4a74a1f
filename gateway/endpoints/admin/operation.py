"""One endpoint of the administrators: its route and its entry in the OpenAPI document are drawn from the same value."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """What `METHOD path` does; `name` is unique among all operations.

    `does` is the method of the view that answers it. `answer` is the JSON schema of its success, None for a stream of
    server-sent events; `body` what it takes, and `problems` the statuses of its failures beside those of keys. `query`
    has the schemas of query parameters; those of the path are texts.
    """

    name: str
    method: Literal["GET", "POST"]
    path: str
    summary: str
    does: Callable[[Any, Request], Awaitable[Response]]
    answer: Schema | None
    body: type[BaseModel] | None = None
    query: dict[str, Schema] = field(default_factory=dict)
    problems: tuple[int, ...] = ()

    def parameters(self) -> list[Schema]:
        """As OpenAPI has them."""
        named = [part[1:-1].partition(":")[0] for part in self.path.split("/") if part.startswith("{")]
        text = {"type": "string", "minLength": 1}
        path = [{"name": name, "in": "path", "required": True, "schema": text} for name in named]
        return path + [
            {"name": name, "in": "query", "required": False, "schema": schema} for name, schema in self.query.items()
        ]


def listed(item: Schema) -> Schema:
    """The schema of OpenAI's kind of list."""
    return whole({"object": {"const": "list"}, "data": {"type": "array", "items": item}})


def whole(properties: Schema) -> Schema:
    """The schema of an object that has all of these."""
    return {"type": "object", "properties": properties, "required": list(properties)}
