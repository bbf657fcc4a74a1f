"""Parses requests of OpenAI's Chat Completions API into a `Chat`, the routing view, and writes the API's errors.

It does the same for APIs with the same errors: legacy Completions, Embeddings, and those that pass through to an
expert. It has what all dialects share: the JSON object of a body, its model, counts, messages and content parts.
`gateway.chat` uses the `Dialect` of each API.

Only fields that routing reads, and counts that multiply the cost, are validated; the expert's server validates the
rest. Every error is an InvalidRequest that names the field.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import orjson

from coe.core import PASS_THROUGH_APIS, Api, Capability, Chat, Message, PassThroughApi
from coe.errors import InvalidRequest, RequestError
from coe.experts.api_formats import LENGTH_FIELDS, MAX_TOKEN_COUNT
from coe.experts.http import sse
from coe.experts.http.expert import FormBody
from coe.registry import AUTO
from gateway.dialects import Dialect, body_of

Needs = set[Capability]

_PART_NEEDS: dict[str, Capability] = {
    "image_url": "images",
    "input_image": "images",
    "image": "images",
    "input_audio": "audio",
    "file": "files",
    "input_file": "files",
    "document": "files",
}
TEXT_PARTS = ("text", "input_text", "output_text")
TOOL_ROLES = frozenset(("tool", "function"))
"""Roles of tool results, whatever their form in a dialect."""
ANSWER_COUNTS = ("n", "best_of")
"""Fields that multiply the number of answers."""
_CHECKED_FIELDS = (*LENGTH_FIELDS, *ANSWER_COUNTS, "stream_options")
_NEEDING_FIELDS = frozenset((*ANSWER_COUNTS, "logprobs", "top_logprobs", "echo"))
"""Fields that may require a capability of the expert."""
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
FORM_APIS: frozenset[PassThroughApi] = frozenset(
    ("audio/transcriptions", "audio/translations", "images/edits", "images/variations")
)
"""APIs whose requests may be forms, because they carry files."""


def parse_object(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object of a body."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(fields).__name__}", code="invalid_json")
    return fields


def chat_of(
    fields: dict[str, Any],
    messages: Iterable[Message],
    needs: Needs,
    *,
    api: Api,
    output_format: Any = None,
    characters: int | None = None,
) -> Chat:
    """The routing view of a parsed body. `output_format` may require a capability: JSON that matches a schema, or any
    JSON. `characters` defaults to those of all messages."""
    model, stream = fields.get("model"), fields.get("stream")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("model is missing: write 'auto' or the name of an expert", param="model")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequest("stream must be true or false", param="stream")
    if not fields.keys().isdisjoint(_CHECKED_FIELDS):
        _check_counts(fields)
    messages = tuple(messages)
    if fields.get("tools") or not TOOL_ROLES.isdisjoint([message.role for message in messages]):
        needs.add("tools")  # also for results of tools in a request without `tools`, such as one for a summary
    if isinstance(output_format, dict) and (kind := output_format.get("type")) in ("json_schema", "json_object"):
        needs.add(kind)
    if characters is None:
        characters = sum([len(message.text) for message in messages])
    return Chat(model, messages, bool(stream), frozenset(needs), characters, fields, api)


def _check_counts(fields: dict[str, Any]) -> None:
    """Raises InvalidRequest for a count that is not a number. Counts multiply the cost; some servers accept "64"."""
    for names, minimum in ((LENGTH_FIELDS, 0), (ANSWER_COUNTS, 1)):
        for name in names:
            if (value := fields.get(name)) is None:
                continue
            whole = type(value) is int or (type(value) is float and value.is_integer())
            if not whole or not minimum <= value <= MAX_TOKEN_COUNT:
                message = f"{name} must be a whole number from {minimum} to {MAX_TOKEN_COUNT}"
                raise InvalidRequest(message, param=name)
    if not isinstance(fields.get("stream_options"), dict | None):
        raise InvalidRequest("stream_options must be an object", param="stream_options")


def items_of(fields: dict[str, Any], name: str) -> list[Any]:
    """The messages of a body."""
    items = fields.get(name)
    if not isinstance(items, list) or not items:
        raise InvalidRequest(f"{name} must be a list of at least one message", param=name)
    return items


def parse_message(
    item: Any, field: str, index: int, roles: tuple[str, ...], needs: Needs, call_field: str = ""
) -> Message:
    """The message at `field[index]`: a role and its content, which is text, a list of parts, or null. `call_field`
    names the field with the id of the tool call that a message answers."""
    if isinstance(item, dict):
        role, content = item.get("role"), item.get("content")
        if role in roles:
            call_id = call_id_of(item, call_field) if role == "tool" else ""
            if isinstance(content, str):
                return Message(role, content, call_id)
            return Message(role, text_of(content, f"{field}[{index}].content", needs), call_id)
        path = f"{field}[{index}].role"
        raise InvalidRequest(f"{path} must be one of {', '.join(roles)}", param=path)
    path = f"{field}[{index}]"
    raise InvalidRequest(f"{path} must be an object with role and content", param=path)


def call_id_of(item: dict[str, Any], field: str) -> str:
    """The id of the tool call that an item answers; empty if it has none."""
    call_id = item.get(field)
    return call_id if isinstance(call_id, str) else ""


def text_of(content: Any, path: str, needs: Needs) -> str:
    """The text of a message's content. Adds to `needs` the capabilities that its other parts require."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise InvalidRequest(f"{path} must be text, a list of parts, or null", param=path)
    texts = []
    for index, part in enumerate(content):
        part_type = type_of(part, path, index)
        if part_type in TEXT_PARTS:
            if not isinstance(part.get("text"), str):
                raise InvalidRequest(f"{path}[{index}].text must be text", param=f"{path}[{index}].text")
            texts.append(part["text"])
        elif (need := _PART_NEEDS.get(part_type)) is not None and not _is_text_document(part):
            needs.add(need)
    return "\n".join(texts)


def _is_text_document(part: dict[str, Any]) -> bool:
    """Returns whether a part is a document of the Messages API that holds text, not a file."""
    source = part.get("source")
    return part["type"] == "document" and isinstance(source, dict) and source.get("type") in ("text", "content")


def type_of(part: Any, path: str, index: int) -> str:
    """The declared type of the part at `path[index]`."""
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise InvalidRequest(f"{path}[{index}] must be an object with a type", param=f"{path}[{index}]")
    part_type: str = part["type"]
    return part_type


def _add_field_needs(fields: dict[str, Any], needs: Needs) -> None:
    """Add the capabilities that fields of OpenAI's APIs require: several answers, log probabilities, and the prompt
    repeated in the answer."""
    if fields.keys().isdisjoint(_NEEDING_FIELDS):
        return
    for name in ANSWER_COUNTS:
        if isinstance(count := fields.get(name), int | float) and count > 1:
            needs.add("n")
    logprobs = fields.get("logprobs")
    if (logprobs is not None and logprobs is not False) or fields.get("top_logprobs"):  # completions take 0
        needs.add("logprobs")
    if fields.get("echo") is True:
        needs.add("echo")


def prompts_of(value: Any, name: str) -> list[str | list[Any]]:
    """The prompts in any of OpenAI's forms: a text, texts, tokens, or lists of tokens."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(type(item) in (int, float) for item in value):  # not bool, which is an int to Python
            return [value]
        if all(isinstance(item, (str, list)) for item in value):
            return value
    raise InvalidRequest(f"{name} must be text, a list of texts, or tokens", param=name)


def parse(body: bytes | bytearray) -> Chat:
    """The routing view of a chat. Raises InvalidRequest that names the field."""
    fields = parse_object(body)
    needs: Needs = set()
    if fields.get("functions"):
        needs.add("tools")
    _add_field_needs(fields, needs)
    parsed = [
        parse_message(message, "messages", index, ROLES, needs, "tool_call_id")
        for index, message in enumerate(items_of(fields, "messages"))
    ]
    return chat_of(fields, parsed, needs, api="chat", output_format=fields.get("response_format"))


def _parse_completion(body: bytes | bytearray) -> Chat:
    """All prompts as one user message."""
    fields = parse_object(body)
    prompts = prompts_of(fields.get("prompt"), "prompt")
    text = "\n".join([prompt for prompt in prompts if isinstance(prompt, str)])
    longest = max(map(len, prompts))  # each prompt gets its own answer
    needs: Needs = set()
    _add_field_needs(fields, needs)
    return chat_of(fields, (Message("user", text),), needs, api="completions", characters=longest)


def _parse_embeddings(body: bytes | bytearray) -> Chat:
    """A chat without messages, as long as its longest input. The input does not influence routing: vectors of different
    models do not mix."""
    fields = parse_object(body)
    if fields.get("stream"):
        raise InvalidRequest("embeddings do not stream: leave stream out", param="stream")
    longest = max(map(len, prompts_of(fields.get("input"), "input")))  # each input gets its own vector
    return chat_of(fields, (), set(), api="embeddings", characters=longest)


def _parse_pass_through(body: bytes | bytearray, *, api: PassThroughApi) -> Chat:
    """A chat without messages, of which only `model` is read; one without a model is for `auto`."""
    if api in FORM_APIS and body[:2] == b"--":
        try:
            fields: Any = FormBody(body)
        except ValueError as error:
            raise InvalidRequest(f"the body is not a multipart form: {error}", code="invalid_form") from None
    else:
        fields = parse_object(body)
    name: Any = fields.get("model")
    if name is None:
        name = AUTO
    if not isinstance(name, str) or not name:
        raise InvalidRequest("model must be text: 'auto' or the name of an expert", param="model")
    return Chat(name, (), False, frozenset(), 0, fields, api)


def error_event(error: RequestError) -> bytes:
    """An error as an event of a stream of OpenAI's APIs, but for Responses."""
    return sse.error_event(body_of(error))


CHAT = Dialect("chat", parse, body_of, error_event)
COMPLETIONS = Dialect("completions", _parse_completion, body_of, error_event)
EMBEDDINGS = Dialect("embeddings", _parse_embeddings, body_of, error_event)
PASS_THROUGH: dict[PassThroughApi, Dialect] = {
    api: Dialect(api, partial(_parse_pass_through, api=api), body_of, error_event, forms=api in FORM_APIS)
    for api in sorted(PASS_THROUGH_APIS)
}
