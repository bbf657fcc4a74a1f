"""OpenAI Chat Completions: body bytes to Chat. Checks only what routing reads; the rest is the expert's to judge."""

from __future__ import annotations

from coe.core import Api, Chat
from coe.errors import InvalidRequest, RequestError
from coe.experts.http import sse
from gateway import errors
from gateway.dialects.parts import Needs, chat_of, fields_of, model_of, turn_of, wants_schema

API: Api = "chat"
ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def parse(body: bytes | bytearray) -> Chat:
    """The routing view of a body. Raises InvalidRequest that names the field."""
    fields = fields_of(body)
    model = model_of(fields)
    needs: Needs = set()
    if fields.get("tools") or fields.get("functions"):
        needs.add("tools")
    if wants_schema(fields.get("response_format")):
        needs.add("json_schema")
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list of at least one message", param="messages")
    turns = [turn_of(message, "messages", index, ROLES, needs) for index, message in enumerate(messages)]
    return chat_of(fields, turns, needs, api=API, model=model)


def error_body(error: RequestError) -> bytes:
    """OpenAI's error body."""
    return errors.body_of(error)


def error_event(error: RequestError) -> bytes:
    """An error inside a stream, after which nothing follows."""
    return sse.error_event(errors.body_of(error))
