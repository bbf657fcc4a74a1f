"""OpenAI's Chat Completions API."""

from __future__ import annotations

from coe.core import Api, Chat
from coe.errors import InvalidRequest, RequestError
from coe.experts.http import sse
from gateway import errors
from gateway.dialects.parsing import Needs, chat_of, fields_of, message_of, model_of, requires_schema

API: Api = "chat"
ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def parse(body: bytes | bytearray) -> Chat:
    """The routing view of a body. Raises InvalidRequest that names the field."""
    fields = fields_of(body)
    model = model_of(fields)
    needs: Needs = set()
    if fields.get("tools") or fields.get("functions"):
        needs.add("tools")
    if requires_schema(fields.get("response_format")):
        needs.add("json_schema")
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list of at least one message", param="messages")
    parsed = [message_of(message, "messages", index, ROLES, needs) for index, message in enumerate(messages)]
    return chat_of(fields, parsed, needs, api=API, model=model)


def error_body(error: RequestError) -> bytes:
    """OpenAI's error body."""
    return errors.body_of(error)


def error_event(error: RequestError) -> bytes:
    """An error as the last event of a stream."""
    return sse.error_event(errors.body_of(error))
