"""Parses requests of Anthropic's Messages API into a `Chat`, the routing view, and writes Anthropic's errors.

It reads the system prompt and messages with content blocks. `gateway.chat` uses the `Dialect` of the API.
"""

from __future__ import annotations

from typing import Any

import orjson

from coe.core import Chat, Message
from coe.errors import RequestError, ThreadUnsupported
from gateway.dialects import Dialect
from gateway.dialects.chat import (
    Needs,
    call_id_of,
    chat_of,
    items_of,
    parse_message,
    parse_object,
    text_of,
    type_of,
)

ROLES = ("user", "assistant", "system")
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def _parse(body: bytes | bytearray) -> Chat:
    """Return the routing view of a body. Raises InvalidRequest, which names the field."""
    fields = parse_object(body)
    needs: Needs = set()
    parsed = []
    if (system := fields.get("system")) is not None:
        parsed.append(Message("system", text_of(system, "system", needs)))
    for index, message in enumerate(items_of(fields, "messages")):
        parsed += _messages(message, index, needs)
    config = fields.get("output_config")
    output_format = config.get("format") if isinstance(config, dict) else fields.get("output_format")
    return chat_of(fields, parsed, needs, api="messages", output_format=output_format)


def error_body(error: RequestError) -> bytes:
    """Return Anthropic's error body."""
    details = {"error_code": error.code} if isinstance(error, ThreadUnsupported) else None
    return refusal(error.status, str(error), details)


def refusal(status: int, message: str, details: dict[str, str] | None = None) -> bytes:
    """Return Anthropic's error body for an HTTP status. `details` are additional fields for programs."""
    kind = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    error: dict[str, Any] = {"type": kind, "message": message}
    return orjson.dumps({"type": "error", "error": error | {"details": details} if details else error})


def _error_event(error: RequestError) -> bytes:
    return b"event: error\ndata: %b\n\n" % error_body(error)


def _messages(message: Any, index: int, needs: Needs) -> list[Message]:
    """Return one message, or two if tool results precede the user's own text."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return [parse_message(message, "messages", index, ROLES, needs)]
    path = f"messages[{index}].content"
    results, own_blocks, call_id = [], [], ""
    for position, block in enumerate(content):
        if type_of(block, path, position) == "tool_result":
            results.append(text_of(block.get("content"), f"{path}[{position}].content", needs))
            call_id = call_id or call_id_of(block, "tool_use_id")
        else:
            own_blocks.append(block)
    own = parse_message({**message, "content": own_blocks}, "messages", index, ROLES, needs)
    if not results:
        return [own]
    return [Message("tool", "\n".join(results), call_id), *([own] if own.text else [])]


PING = b'event: ping\ndata: {"type": "ping"}\n\n'
MESSAGES = Dialect("messages", _parse, error_body, _error_event, keep_alive=PING)
