"""OpenAI Chat Completions: body bytes to Chat. Checks only what routing reads; the rest is the expert's to judge."""

from __future__ import annotations

from typing import Any

import orjson

from coe.core import Api, Capability, Chat, Message
from coe.errors import InvalidRequest, RequestError
from coe.experts import sse
from gateway import errors

API: Api = "chat"
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_PART_NEEDS: dict[str, Capability] = {"image_url": "images", "input_image": "images", "input_audio": "audio"}


def parse(body: bytes) -> Chat:
    """The routing view of a body. Raises InvalidRequest that names the field."""
    fields = _object(body)
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("model is missing: write 'auto' or the name of an expert", param="model")
    stream = fields.get("stream", False)
    if stream is None:
        stream = False
    if not isinstance(stream, bool):
        raise InvalidRequest("stream must be true or false", param="stream")
    needs = _field_needs(fields)
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list of at least one message", param="messages")
    turns = tuple(_message(message, f"messages[{index}]", needs) for index, message in enumerate(messages))
    return Chat(
        model=model,
        messages=turns,
        stream=stream,
        needs=frozenset(needs),
        characters=sum(len(turn.text) for turn in turns),
        fields=fields,
    )


def error_body(error: RequestError) -> bytes:
    """OpenAI's error body."""
    return errors.body_of(error)


def error_event(error: RequestError) -> bytes:
    """An error inside a stream, after which nothing follows."""
    return sse.error_event(errors.body_of(error))


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(fields).__name__}", code="invalid_json")
    return fields


def _field_needs(fields: dict[str, Any]) -> set[Capability]:
    needs: set[Capability] = set()
    if fields.get("tools") or fields.get("functions"):
        needs.add("tools")
    response_format = fields.get("response_format")
    if isinstance(response_format, dict) and response_format.get("type") == "json_schema":
        needs.add("json_schema")
    return needs


def _message(message: Any, where: str, needs: set[Capability]) -> Message:
    if not isinstance(message, dict):
        raise InvalidRequest(f"{where} must be an object with role and content", param=where)
    role = message.get("role")
    if role not in ROLES:
        raise InvalidRequest(f"{where}.role must be one of {', '.join(ROLES)}", param=f"{where}.role")
    content = message.get("content")
    if content is None or isinstance(content, str):
        return Message(role, content or "")
    if not isinstance(content, list):
        raise InvalidRequest(f"{where}.content must be text, a list of parts, or null", param=f"{where}.content")
    return Message(role, "\n".join(_parts(content, f"{where}.content", needs)))


def _parts(content: list[Any], where: str, needs: set[Capability]) -> list[str]:
    texts = []
    for index, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise InvalidRequest(f"{where}[{index}] must be an object with a type", param=f"{where}[{index}]")
        if (need := _PART_NEEDS.get(part["type"])) is not None:
            needs.add(need)
        elif part["type"] == "text":
            if not isinstance(part.get("text"), str):
                raise InvalidRequest(f"{where}[{index}].text must be text", param=f"{where}[{index}].text")
            texts.append(part["text"])
    return texts
