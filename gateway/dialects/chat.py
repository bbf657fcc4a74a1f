"""Parses requests of OpenAI's Chat Completions API into a `Chat`, the routing view, and writes the API's errors.

It does the same for two APIs with the same errors: legacy Completions, and Embeddings. `gateway.request.line` uses the
`Dialect` of each API.
"""

from __future__ import annotations

from coe.core import Chat, Message
from coe.errors import InvalidRequest, RequestError
from coe.experts.http import sse
from gateway.dialects import Dialect
from gateway.dialects.parsing import (
    NEEDING_FIELDS,
    Needs,
    add_field_needs,
    add_format_need,
    chat_of,
    model_of,
    parse_message,
    parse_object,
    prompts_of,
)
from gateway.errors import body_of

_NEEDING_FIELDS = frozenset(("tools", "functions", "response_format", *NEEDING_FIELDS))
"""Fields that may require a capability of the expert."""
ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def parse(body: bytes | bytearray, model: str = "") -> Chat:
    """The routing view of a chat. Raises InvalidRequest that names the field."""
    fields = parse_object(body)
    model = model or model_of(fields)
    needs: Needs = set()
    if not fields.keys().isdisjoint(_NEEDING_FIELDS):
        if fields.get("tools") or fields.get("functions"):
            needs.add("tools")
        add_format_need(fields.get("response_format"), needs)
        add_field_needs(fields, needs)
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list of at least one message", param="messages")
    parsed = [
        parse_message(message, "messages", index, ROLES, needs, "tool_call_id")
        for index, message in enumerate(messages)
    ]
    return chat_of(fields, parsed, needs, api="chat", model=model)


def _parse_completion(body: bytes | bytearray, model: str = "") -> Chat:
    """All prompts as one user message."""
    fields = parse_object(body)
    model = model or model_of(fields)
    prompts = prompts_of(fields.get("prompt"), "prompt")
    text = "\n".join([prompt for prompt in prompts if isinstance(prompt, str)])
    longest = max(map(len, prompts))  # each prompt gets its own answer
    needs: Needs = set()
    add_field_needs(fields, needs)
    return chat_of(fields, (Message("user", text),), needs, api="completions", model=model, characters=longest)


def _parse_embeddings(body: bytes | bytearray, model: str = "") -> Chat:
    """A chat without messages, as long as its longest input. The input does not influence routing: vectors of different
    models do not mix."""
    fields = parse_object(body)
    model = model or model_of(fields)
    if fields.get("stream"):
        raise InvalidRequest("embeddings do not stream: leave stream out", param="stream")
    longest = max(map(len, prompts_of(fields.get("input"), "input")))  # each input gets its own vector
    return chat_of(fields, (), set(), api="embeddings", model=model, characters=longest)


def _error_event(error: RequestError) -> bytes:
    return sse.error_event(body_of(error))


CHAT = Dialect("chat", parse, body_of, _error_event)
COMPLETIONS = Dialect("completions", _parse_completion, body_of, _error_event)
EMBEDDINGS = Dialect("embeddings", _parse_embeddings, body_of, _error_event)
