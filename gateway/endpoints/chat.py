"""Operations of the chat APIs, one dialect each, served by a `Line`; and the schemas of their requests and responses.

The schemas are exact for the fields that the gateway reads. All other fields reach the expert, which checks them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from coe.core import PATHS
from coe.registry import AUTO
from gateway.dialects import Dialect, chat, messages, responses
from gateway.dialects.chat import CHAT, COMPLETIONS, EMBEDDINGS
from gateway.dialects.messages import MESSAGES
from gateway.dialects.parsing import TEXT_PARTS
from gateway.dialects.responses import RESPONSES
from gateway.endpoints.openapi import ANTHROPIC_HEADERS, CALL_HEADERS, ROUTING_HEADERS
from gateway.endpoints.operation import CALL_PROBLEMS, EVENTS, JSON, NUMBER, TEXT, Operation, Schema, Success, ref
from gateway.parts import Parts
from gateway.request.line import DEPLOYMENT, Line


def _line(parts: Parts, *, dialect: Dialect) -> Line:
    stored = parts.stored if dialect is RESPONSES else None
    return Line(
        parts.current,
        dialect=dialect,
        observers=parts.observers,
        tracing=parts.tracing,
        cache=parts.cache,
        stored=stored,
    )


def line_operation(
    name: str,
    summary: str,
    dialect: Dialect,
    *,
    request_headers: tuple[str, ...] = CALL_HEADERS,
    error: str = "Error",
    streams: bool = True,
    also: tuple[str, ...] = (),
) -> Operation:
    """An operation that a Line serves in this dialect."""
    content: dict[str, Schema] = {JSON: ref(f"{name}Response")} | ({EVENTS: TEXT} if streams else {})
    line: Callable[[Parts], Line] = partial(_line, dialect=dialect)
    return Operation(
        f"create{name}",
        "POST",
        PATHS[dialect.api],
        summary,
        {200: Success("The expert's response.", content, ROUTING_HEADERS)},
        resource=line,
        scope="chat",
        body=f"{name}Request",
        request_headers=request_headers,
        problems=CALL_PROBLEMS,
        error=error,
        limited=True,
        also=also,
    )


def azure_paths(name: str) -> tuple[str, ...]:
    """Paths of Azure OpenAI's clients: the v1 form, and the one with the model as deployment."""
    return f"/openai/v1/{name}", f"/openai/deployments/{{{DEPLOYMENT}:path}}/{name}"


OPERATIONS = (
    line_operation("Chat", "OpenAI's Chat Completions", CHAT, also=azure_paths("chat/completions")),
    line_operation("Completion", "OpenAI's legacy Completions", COMPLETIONS, also=azure_paths("completions")),
    line_operation("Responses", "OpenAI's Responses", RESPONSES, also=("/openai/v1/responses", "/openai/responses")),
    line_operation(
        "Messages",
        "Anthropic's Messages",
        MESSAGES,
        request_headers=CALL_HEADERS + ANTHROPIC_HEADERS,
        error="AnthropicError",
    ),
    line_operation("Embeddings", "OpenAI's Embeddings", EMBEDDINGS, streams=False, also=azure_paths("embeddings")),
)


_COUNT: Schema = {"type": "integer"}


def _object(properties: Schema, *required: str, text: str = "") -> Schema:
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": True}
    return schema | ({"required": list(required)} if required else {}) | ({"description": text} if text else {})


def _list(items: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": items, **limits}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _error(*names: str, **more: Schema) -> Schema:
    fields: Schema = dict.fromkeys(names, TEXT) | more
    return _object({"error": _object(fields, *fields)}, "error")


_MODEL: Schema = TEXT | {
    "minLength": 1,
    "description": f"`{AUTO}`, or the name of an expert or recipe (GET /v1/models).",
    "examples": [AUTO],
}
_STREAM: Schema = {
    "type": ["boolean", "null"],
    "default": False,
    "description": "Stream the response as server-sent events.",
}
_CONTENT: Schema = {"anyOf": [TEXT, _list(ref("Part")), {"type": "null"}]}
_PROMPT: Schema = {
    "anyOf": [TEXT, _list(NUMBER, minItems=1), _list({"anyOf": [TEXT, _list({})]}, minItems=1)],
    "description": "A text, token ids, or a list of either.",
}
_TEXT_PART = _object({"type": {"enum": list(TEXT_PARTS)}, "text": TEXT}, "type", "text")
_USAGE = _object(dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), _COUNT))
_CHOICES = _object(
    {"id": TEXT, "object": TEXT, "created": _COUNT, "model": TEXT, "choices": _list(_object({})), "usage": _USAGE},
    "choices",
)
_OTHER_FIELDS = "Other fields reach the expert unchanged, unless they select a model."


def _message(roles: tuple[str, ...], content: Schema = _CONTENT) -> Schema:
    return _object({"role": {"enum": list(roles)}, "content": content}, "role")


def _other_than(*types: str) -> Schema:
    return _object({"type": {"type": "string", "not": {"enum": list(types)}}}, "type")


def _of_type(*types: str, **properties: Schema) -> Schema:
    return _object({"type": {"enum": list(types)}, **properties}, "type")


def _request(properties: Schema, *required: str) -> Schema:
    return _object({"model": _MODEL, "stream": _STREAM, **properties}, "model", *required, text=_OTHER_FIELDS)


CHAT_SCHEMAS: Schema = {
    "Part": {
        "anyOf": [_TEXT_PART, _other_than(*TEXT_PARTS)],
        "description": "A text, or an image, audio, tool call or other part of its API.",
    },
    "ChatMessage": _message(chat.ROLES),
    "ChatRequest": _request({"messages": _list(ref("ChatMessage"), minItems=1)}, "messages"),
    "ChatResponse": _CHOICES,
    "CompletionRequest": _request({"prompt": _PROMPT}, "prompt"),
    "CompletionResponse": _CHOICES,
    "ResponsesItem": {
        "anyOf": [
            {"allOf": [_message(responses.ROLES), _object({"type": {"const": "message"}})]},
            _of_type(*responses.TOOL_OUTPUTS, output=_CONTENT),
            _other_than("message", *responses.TOOL_OUTPUTS),
        ]
    },
    "ResponsesRequest": _request(
        {"instructions": _CONTENT, "input": {"anyOf": [TEXT, _list(ref("ResponsesItem"), minItems=1)]}}, "input"
    ),
    "ResponsesResponse": _object(
        dict.fromkeys(("id", "object", "model", "status"), TEXT)
        | {
            "output": _list(_object({})),
            "usage": _or_null(_object({"input_tokens": _COUNT, "output_tokens": _COUNT, "total_tokens": _COUNT})),
        }
    ),
    "Block": {
        "anyOf": [_TEXT_PART, _of_type("tool_result", content=_CONTENT), _other_than(*TEXT_PARTS, "tool_result")]
    },
    "AnthropicMessage": _message(messages.ROLES, {"anyOf": [TEXT, _list(ref("Block")), {"type": "null"}]}),
    "MessagesRequest": _request(
        {"system": _CONTENT, "messages": _list(ref("AnthropicMessage"), minItems=1)}, "messages"
    ),
    "MessagesResponse": _object(
        dict.fromkeys(("id", "type", "role", "model"), TEXT)
        | {
            "content": _list(_object({"type": TEXT})),
            "stop_reason": _or_null(TEXT),
            "usage": _object({"input_tokens": _COUNT, "output_tokens": _COUNT}),
        }
    ),
    "EmbeddingsRequest": _object({"model": _MODEL, "input": _PROMPT}, "model", "input", text=_OTHER_FIELDS),
    "EmbeddingsResponse": _object(
        {"object": TEXT, "model": TEXT, "data": _list(_object({"index": _COUNT})), "usage": _USAGE}
    ),
    "Error": _error("message", "type", "code", param=_or_null(TEXT)),
    "AnthropicError": _object(
        {"type": {"const": "error"}, "error": _object({"type": TEXT, "message": TEXT}, "type", "message")},
        "type",
        "error",
    ),
}
