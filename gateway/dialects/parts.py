"""What the dialects have in common: the object that a body is, its model, its stream flag, and the parts of a turn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from coe.core import Api, Capability, Chat, Message
from coe.errors import InvalidRequest
from coe.experts.api_formats import LENGTH_FIELDS, MAX_TOKEN_COUNT

Needs = set[Capability]

_PART_NEEDS: dict[str, Capability] = {
    "image_url": "images",
    "input_image": "images",
    "image": "images",
    "input_audio": "audio",
}
TEXT_PARTS = ("text", "input_text", "output_text")
ANSWERS = ("n", "best_of")
"""Names of what multiplies an answer."""


def fields_of(body: bytes | bytearray) -> dict[str, Any]:
    """The body's JSON object. Raises InvalidRequest when it is none."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(fields).__name__}", code="invalid_json")
    return fields


def chat_of(
    fields: dict[str, Any],
    turns: Iterable[Message],
    needs: Needs,
    *,
    api: Api,
    model: str,
    characters: int | None = None,
) -> Chat:
    """The routing view of a parsed body; `characters` are those of all turns unless counted otherwise."""
    _check_counts(fields)
    messages = tuple(turns)
    if characters is None:
        characters = sum([len(message.text) for message in messages])
    return Chat(model, messages, stream_of(fields), frozenset(needs), characters, fields, api)


def _check_counts(fields: dict[str, Any]) -> None:
    """Raises InvalidRequest for a number that multiplies what is billed and is none: some servers read "64" as 64."""
    for name in LENGTH_FIELDS:
        if (value := fields.get(name)) is not None:
            _check_count(value, name, least=0)
    for name in ANSWERS:
        if (value := fields.get(name)) is not None:
            _check_count(value, name, least=1)
    options = fields.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise InvalidRequest("stream_options must be an object", param="stream_options")


def _check_count(value: Any, name: str, *, least: int) -> None:
    whole = type(value) is int or (type(value) is float and value.is_integer())
    if not whole or not least <= value <= MAX_TOKEN_COUNT:
        raise InvalidRequest(f"{name} must be a whole number from {least} to {MAX_TOKEN_COUNT}", param=name)


def model_of(fields: dict[str, Any]) -> str:
    """`auto` or what may be an expert's name."""
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("model is missing: write 'auto' or the name of an expert", param="model")
    return model


def stream_of(fields: dict[str, Any]) -> bool:
    """Whether the answer shall come as events."""
    stream = fields.get("stream")
    if stream is None:
        return False
    if not isinstance(stream, bool):
        raise InvalidRequest("stream must be true or false", param="stream")
    return stream


def turn_of(item: Any, place: str, index: int, roles: tuple[str, ...], needs: Needs) -> Message:
    """The message at `place[index]`: a role and content, which is text, a list of parts, or null."""
    if isinstance(item, dict):
        role, content = item.get("role"), item.get("content")
        if role in roles:
            if isinstance(content, str):
                return Message(role, content)
            return Message(role, text_of(content, f"{place}[{index}].content", needs))
        where = f"{place}[{index}].role"
        raise InvalidRequest(f"{where} must be one of {', '.join(roles)}", param=where)
    where = f"{place}[{index}]"
    raise InvalidRequest(f"{where} must be an object with role and content", param=where)


def text_of(content: Any, where: str, needs: Needs) -> str:
    """The text of a turn, and into `needs` what its other parts ask of an expert."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be text, a list of parts, or null", param=where)
    return "\n".join(texts_of(content, where, needs))


def texts_of(parts: list[Any], where: str, needs: Needs) -> list[str]:
    """The texts among typed parts."""
    texts = []
    for index, part in enumerate(parts):
        kind = kind_of(part, where, index)
        if kind in TEXT_PARTS:
            if not isinstance(part.get("text"), str):
                raise InvalidRequest(f"{where}[{index}].text must be text", param=f"{where}[{index}].text")
            texts.append(part["text"])
        elif (need := _PART_NEEDS.get(kind)) is not None:
            needs.add(need)
    return texts


def kind_of(part: Any, where: str, index: int) -> str:
    """The type of one part."""
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise InvalidRequest(f"{where}[{index}] must be an object with a type", param=f"{where}[{index}]")
    kind: str = part["type"]
    return kind


def wants_schema(declared: Any) -> bool:
    """Whether an output format asks for JSON that fits a schema."""
    return isinstance(declared, dict) and declared.get("type") == "json_schema"


def prompts_of(value: Any, name: str) -> list[str | list[Any]]:
    """Of the forms OpenAI knows (a text, texts, tokens, lists of tokens): one text or list of tokens a prompt."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(type(item) in (int, float) for item in value):  # not bool, which is an int to Python
            return [value]
        if all(isinstance(item, (str, list)) for item in value):
            return value
    raise InvalidRequest(f"{name} must be text, a list of texts, or tokens", param=name)
