"""Operations of the chat APIs: one dialect each, served by a `Line`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gateway.dialects import Dialect, chat, completions, embeddings, messages, responses
from gateway.endpoints.headers import ANTHROPIC_HEADERS, CALL_HEADERS, ROUTING_HEADERS
from gateway.endpoints.http import EVENTS, JSON
from gateway.endpoints.operation import CALL_PROBLEMS, Operation, Schema, Success, ref
from gateway.observability.attributes import PATHS
from gateway.parts import Parts
from gateway.request.line import Line


def _line(parts: Parts, *, dialect: Dialect) -> Line:
    current = parts.current
    return Line(current, dialect=dialect, observers=parts.observers, tracing=parts.tracing)


def _operation(
    name: str,
    summary: str,
    dialect: Dialect,
    *,
    request_headers: tuple[str, ...] = CALL_HEADERS,
    error: str = "Error",
    streams: bool = True,
) -> Operation:
    content: dict[str, Schema] = {JSON: ref(f"{name}Response")} | ({EVENTS: {"type": "string"}} if streams else {})
    line: Callable[[Parts], Line] = partial(_line, dialect=dialect)
    return Operation(
        name=f"create{name}",
        method="POST",
        path=PATHS[dialect.API],
        summary=summary,
        resource=line,
        scope="chat",
        responses={200: Success("The expert's response.", content, ROUTING_HEADERS)},
        body=f"{name}Request",
        request_headers=request_headers,
        problems=CALL_PROBLEMS,
        error=error,
        limited=True,
    )


OPERATIONS = (
    _operation("Chat", "OpenAI's Chat Completions", chat),
    _operation("Completion", "OpenAI's legacy Completions", completions),
    _operation("Responses", "OpenAI's Responses", responses),
    _operation(
        "Messages",
        "Anthropic's Messages",
        messages,
        request_headers=CALL_HEADERS + ANTHROPIC_HEADERS,
        error="AnthropicError",
    ),
    _operation("Embeddings", "OpenAI's Embeddings", embeddings, streams=False),
)
