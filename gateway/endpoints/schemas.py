"""JSON schemas of what clients send and get, for the OpenAPI document.

Exact for what the gateway itself reads; all other fields pass through untouched and are the experts' to judge.
"""

from __future__ import annotations

from typing import Any

from coe.errors import CAUSES
from coe.records.feedback import MAX_NAME_CHARACTERS
from coe.registry import AUTO
from gateway.dialects import chat, messages, responses
from gateway.dialects.parts import TEXT_PARTS
from gateway.endpoints.feedback import SAYS, THUMBS

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer"}
_NAMES: Schema = {"type": "array", "items": TEXT}


def ref(name: str, *, section: str = "schemas") -> Schema:
    """A pointer to a component."""
    return {"$ref": f"#/components/{section}/{name}"}


def _object(properties: Schema, *required: str, text: str = "") -> Schema:
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": True}
    return schema | ({"required": list(required)} if required else {}) | ({"description": text} if text else {})


def _list(items: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": items, **limits}


def _name(text: str) -> Schema:
    return {"type": "string", "minLength": 1, "maxLength": MAX_NAME_CHARACTERS, "description": text}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _error(*names: str, **more: Schema) -> Schema:
    fields: Schema = dict.fromkeys(names, TEXT) | more
    return _object({"error": _object(fields, *fields)}, "error")


_MODEL: Schema = {
    "type": "string",
    "minLength": 1,
    "description": f"`{AUTO}`, or the name of an expert (GET /v1/models).",
    "examples": [AUTO],
}
_STREAM: Schema = {"type": ["boolean", "null"], "default": False, "description": "Answer as server-sent events."}
_CONTENT: Schema = {"anyOf": [TEXT, _list(ref("Part")), {"type": "null"}]}
_PROMPT: Schema = {
    "anyOf": [
        TEXT,
        _list(_NUMBER, minItems=1),
        _list({"anyOf": [TEXT, _list({})]}, minItems=1),
    ],
    "description": "A text, tokens, or a list of either.",
}
_USAGE = _object({"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT})
_REST = "Every other field goes to the expert as it is."


def _turn(roles: tuple[str, ...], content: Schema = _CONTENT) -> Schema:
    return _object({"role": {"enum": list(roles)}, "content": content}, "role")


def _other_than(*types: str) -> Schema:
    return _object({"type": {"type": "string", "not": {"enum": list(types)}}}, "type")


def _of_type(*types: str, **properties: Schema) -> Schema:
    return _object({"type": {"enum": list(types)}, **properties}, "type")


def _request(properties: Schema, *required: str) -> Schema:
    return _object({"model": _MODEL, "stream": _STREAM, **properties}, "model", *required, text=_REST)


COMPONENTS: Schema = {
    "Part": {
        "anyOf": [
            _object({"type": {"enum": list(TEXT_PARTS)}, "text": TEXT}, "type", "text"),
            _other_than(*TEXT_PARTS),
        ],
        "description": "A text, or an image, audio, tool call and so on as its API has it.",
    },
    "ChatMessage": _turn(chat.ROLES),
    "ChatRequest": _request({"messages": _list(ref("ChatMessage"), minItems=1)}, "messages"),
    "ChatResponse": _object(
        {"id": TEXT, "object": TEXT, "created": _COUNT, "model": TEXT, "choices": _list(_object({})), "usage": _USAGE},
        "choices",
    ),
    "CompletionRequest": _request({"prompt": _PROMPT}, "prompt"),
    "CompletionResponse": _object(
        {"id": TEXT, "object": TEXT, "created": _COUNT, "model": TEXT, "choices": _list(_object({})), "usage": _USAGE},
        "choices",
    ),
    "ResponsesItem": {
        "anyOf": [
            {"allOf": [_turn(responses.ROLES), _object({"type": {"const": "message"}})]},
            _of_type(*responses.OUTPUTS, output=_CONTENT),
            _other_than("message", *responses.OUTPUTS),
        ]
    },
    "ResponsesRequest": _request(
        {"instructions": _CONTENT, "input": {"anyOf": [TEXT, _list(ref("ResponsesItem"), minItems=1)]}}, "input"
    ),
    "ResponsesResponse": _object(
        {
            "id": TEXT,
            "object": TEXT,
            "model": TEXT,
            "status": TEXT,
            "output": _list(_object({})),
            "usage": _or_null(_object({"input_tokens": _COUNT, "output_tokens": _COUNT, "total_tokens": _COUNT})),
        }
    ),
    "Block": {
        "anyOf": [
            _object({"type": {"enum": list(TEXT_PARTS)}, "text": TEXT}, "type", "text"),
            _of_type("tool_result", content=_CONTENT),
            _other_than(*TEXT_PARTS, "tool_result"),
        ]
    },
    "AnthropicMessage": _turn(messages.ROLES, {"anyOf": [TEXT, _list(ref("Block")), {"type": "null"}]}),
    "MessagesRequest": _request(
        {"system": _CONTENT, "messages": _list(ref("AnthropicMessage"), minItems=1)}, "messages"
    ),
    "MessagesResponse": _object(
        {
            "id": TEXT,
            "type": TEXT,
            "role": TEXT,
            "model": TEXT,
            "content": _list(_object({"type": TEXT})),
            "stop_reason": _or_null(TEXT),
            "usage": _object({"input_tokens": _COUNT, "output_tokens": _COUNT}),
        }
    ),
    "TokenCount": _object({"input_tokens": {"type": "integer", "minimum": 0}}, "input_tokens"),
    "EmbeddingsRequest": _object({"model": _MODEL, "input": _PROMPT}, "model", "input", text=_REST),
    "EmbeddingsResponse": _object(
        {"object": TEXT, "model": TEXT, "data": _list(_object({"index": _COUNT})), "usage": _USAGE}
    ),
    "Decision": _object(
        {
            "expert": TEXT,
            "category": TEXT,
            "confidence": _NUMBER,
            "reason": TEXT,
            "fallback_from": TEXT,
            "cause": {"enum": ["", *CAUSES], "description": "Why the first choice is not asked; else empty."},
            "candidates": _NAMES,
            "probabilities": {"type": "object", "additionalProperties": _NUMBER},
            "stage": TEXT,
            "router": TEXT,
            "overlay": TEXT,
        },
        *("expert", "category", "confidence", "reason", "fallback_from", "cause", "candidates", "probabilities"),
        *("stage", "router", "overlay"),
    ),
    "FeedbackRequest": _object(
        {
            "request_id": _name("What the answer's header x-request-id said."),
            "event_id": _name("The same id is the same event, however often it is sent; left out, the same content."),
            "score": {"type": "number", "minimum": 0, "maximum": 1, "description": "How good the answer was."},
            "thumb": {"enum": list(THUMBS)},
            "preferred": _name("The expert that should have answered."),
            "category": _name("What the request was about."),
        },
        "request_id",
    )
    | {"additionalProperties": False, "oneOf": [{"required": [name]} for name in SAYS]},
    "Feedback": _object(
        {"id": TEXT, "request_id": TEXT, "stored": {"const": True}, "checked": {"type": "boolean"}},
        *("id", "request_id", "stored", "checked"),
    ),
    "Model": _object(
        {"id": TEXT, "object": {"const": "model"}, "created": _COUNT, "owned_by": TEXT},
        *("id", "object", "created", "owned_by"),
    ),
    "Models": _object({"object": {"const": "list"}, "data": _list(ref("Model"))}, "object", "data"),
    "Live": _object({"status": {"const": "live"}}, "status"),
    "Ready": _object(
        {
            "status": {"enum": ["ready", "not ready"]},
            "router": TEXT,
            "config": TEXT,
            "reload_error": {"type": "boolean", "description": "What is declared now could not be taken over."},
        },
        *("status", "router", "config", "reload_error"),
    ),
    "Error": _error("message", "type", "code", param=_or_null(TEXT)),
    "AnthropicError": _object(
        {"type": {"const": "error"}, "error": _object({"type": TEXT, "message": TEXT}, "type", "message")},
        "type",
        "error",
    ),
}


JSON, EVENTS = "application/json", "text/event-stream"


PROBLEMS: dict[int, str] = {
    400: "The request is wrong; `param` names the field.",
    404: "No such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "The expert refuses the request.",
    429: "Too many requests, at the gateway, for this key or at the expert.",
    431: "The headers are too large.",
    500: "A bug of the gateway.",
    502: "The expert answered nonsense.",
    503: "No expert can be reached, or the gateway is about to end.",
    504: "No answer in time.",
}


_ENTRANCE: dict[int, str] = {
    403: "A web page of an origin that is not allowed sent the request.",
    421: "The host name is not allowed.",
}


_DENIED: dict[int, str] = {
    401: "No API key, or one that is not known.",
    403: "The key may not do this, or a web page of an origin that is not allowed sent the request.",
}


_LATER = (429, 503)
"""Statuses that say when to come back."""


def operation(
    name: str, summary: str, responses: Schema, *, keys: bool = False, error: str = "Error", **more: Any
) -> Schema:
    refusals = problems(_ENTRANCE | (_DENIED if keys else {}), error)
    entry: Schema = {"operationId": name, "summary": summary, "responses": {**responses, **refusals}, **more}
    if keys:
        entry["security"] = [{"bearer": []}, {"apiKey": []}]
    return entry


def body(name: str) -> Schema:
    return {"required": True, "content": {JSON: {"schema": ref(name)}}}


def answer(text: str, name: str) -> Schema:
    return {"description": text, "content": {JSON: {"schema": ref(name)}}}


def problems(known: dict[int, str], error: str = "Error") -> Schema:
    return {
        str(status): answer(text, error)
        | ({"headers": {"retry-after": ref("RetryAfter", section="headers")}} if status in _LATER else {})
        for status, text in known.items()
    }
