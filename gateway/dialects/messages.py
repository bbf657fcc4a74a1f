"""Anthropic's Messages: system, messages and their content blocks to Chat; errors as Anthropic writes them."""

from __future__ import annotations

from typing import Any

import orjson

from coe.core import Api, Chat, Message
from coe.errors import InvalidRequest, RequestError
from gateway import errors
from gateway.dialects.parts import Needs, chat_of, fields_of, kind_of, model_of, text_of, turn_of, wants_schema

API: Api = "messages"
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


def parse(body: bytes | bytearray) -> Chat:
    """The routing view of a body. Raises InvalidRequest that names the field."""
    fields = fields_of(body)
    model = model_of(fields)
    needs: Needs = set()
    if fields.get("tools"):
        needs.add("tools")
    config = fields.get("output_config")
    if wants_schema(config.get("format") if isinstance(config, dict) else fields.get("output_format")):
        needs.add("json_schema")
    turns = []
    if (system := fields.get("system")) is not None:
        turns.append(Message("system", text_of(system, "system", needs)))
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list of at least one message", param="messages")
    for index, message in enumerate(messages):
        turns += _turns(message, index, needs)
    return chat_of(fields, turns, needs, api=API, model=model)


def error_body(error: RequestError) -> bytes:
    """Anthropic's error body."""
    return refusal(errors.status_of(error), str(error))


def refusal(status: int, message: str) -> bytes:
    """The same for an HTTP status."""
    kind = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})


def error_event(error: RequestError) -> bytes:
    """An error inside a stream, after which nothing follows."""
    return b"event: error\ndata: %b\n\n" % error_body(error)


def _turns(message: Any, place: int, needs: Needs) -> list[Message]:
    """One message, or two where a tool's results stand before the user's own words."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return [turn_of(message, "messages", place, ROLES, needs)]
    where = f"messages[{place}].content"
    results, own = [], []
    for index, block in enumerate(content):
        if kind_of(block, where, index) == "tool_result":
            results.append(text_of(block.get("content"), f"{where}[{index}].content", needs))
        else:
            own.append(block)
    turn = turn_of({**message, "content": own}, "messages", place, ROLES, needs)
    if not results:
        return [turn]
    return [Message("tool", "\n".join(results)), *([turn] if turn.text else [])]
