"""Translates a call into litellm's arguments, and litellm's results into JSON objects and events.

Only the API's own fields pass, because litellm reads its settings from the same arguments. A request is rejected with
InvalidRequest if litellm would drop a part of it or fail on it. `coe.experts.litellm.expert` uses it for every call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from coe.core import Api, Call
from coe.errors import InvalidRequest
from coe.experts.api_formats import API_FORMATS, applicable_defaults
from coe.registry import ExpertSpec

DEFAULT_MAX_TOKENS = 4096
"""For Messages requests without max_tokens; Anthropic's API has no default."""

_NAMES: Mapping[Api, str] = {
    "chat": "audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens "
    "messages modalities n parallel_tool_calls prediction presence_penalty reasoning_effort response_format seed stop "
    "stream_options temperature thinking tool_choice tools top_logprobs top_p user verbosity",
    "responses": "include input instructions max_output_tokens parallel_tool_calls reasoning temperature text "
    "tool_choice tools top_logprobs top_p truncation user",
    "messages": "max_tokens messages output_format stop_sequences system temperature thinking tool_choice tools top_k "
    "top_p",
    "embeddings": "dimensions encoding_format input user",
}
FIELDS: Mapping[Api, frozenset[str]] = {api: frozenset(names.split()) for api, names in _NAMES.items()}
"""Request fields that pass. litellm reads its own settings (api_base, mock_response, fallbacks and many more) from the
same arguments; otherwise a client could send the expert's key to an address of its own."""

_LOGPROBS = "message.output_text.logprobs"
_SERVER_STATE = ("previous_response_id", "conversation", "prompt")
_TOOL_TYPES = (None, "function", "custom")
_FIELD_TYPES: Mapping[str, Mapping[str, type]] = {
    "responses": {"tools": list, "reasoning": dict, "text": dict, "include": list},
    "messages": {"tools": list, "tool_choice": dict, "thinking": dict, "stop_sequences": list},
}
"""Types that litellm does not check: another type would fail as if the expert had sent an invalid response."""
_BLOCK_TYPES = ("text", "image", "document", "tool_use", "tool_result", "thinking", "redacted_thinking")
"""Content blocks of a Messages request that litellm translates; it silently drops others."""


def litellm_arguments(call: Call, spec: ExpertSpec) -> dict[str, Any]:
    """The declared parameters, then the client's fields, then the expert's system prompt. Raises InvalidRequest for
    what cannot be translated."""
    if call.api not in FIELDS:
        raise _unsupported(f"expert {spec.name!r} cannot answer the {call.api} API", "model")
    _check_types(call.api, call.fields)
    _check_state(call.fields, spec)
    _check_tools(call.fields, spec)
    if call.api == "messages":
        _check_blocks(call.fields["messages"], spec)
    if call.api == "responses":
        _check_logprobs(call.fields, spec)
    api_format = API_FORMATS[call.api]
    fields = {name: call.fields[name] for name in FIELDS[call.api] & call.fields.keys()}
    parameters = spec.parameters
    if call.parameters is not None:
        parameters = {**applicable_defaults(parameters, call.parameters), **call.parameters}
    arguments = {**applicable_defaults(api_format.defaults(parameters), fields), **fields}
    if call.api == "messages":
        arguments.setdefault("max_tokens", DEFAULT_MAX_TOKENS)
        arguments |= _translated_fields(call.fields)
    if spec.system_prompt:
        arguments |= api_format.system_prompt_fields(arguments, spec.system_prompt)
    if call.api == "chat" and call.stream:
        arguments["stream_options"] = {"include_usage": True}  # for CoE's own counts
    if call.api != "embeddings":
        arguments["stream"] = call.stream
    return arguments


def forwarded_headers(call: Call, spec: ExpertSpec) -> dict[str, str]:
    """The headers of the call that are forwarded. litellm sets anthropic-version itself; anthropic-beta means something
    to Anthropic alone."""
    anthropic = spec.runtime == "litellm" and spec.model.startswith("anthropic/")
    dropped = ("anthropic-version",) if anthropic else ("anthropic-version", "anthropic-beta")
    return {name: value for name, value in call.headers.items() if name not in dropped}


def _check_types(api: Api, fields: Mapping[str, Any]) -> None:
    for name, shape in _FIELD_TYPES.get(api, {}).items():
        if fields.get(name) is not None and not isinstance(fields[name], shape):
            raise InvalidRequest(f"{name} must be {'a list' if shape is list else 'an object'}", param=name)


def _check_state(fields: Mapping[str, Any], spec: ExpertSpec) -> None:
    for name in _SERVER_STATE:
        if fields.get(name):
            message = f"expert {spec.name!r} keeps no state between requests: send the conversation without {name}"
            raise _unsupported(message, name)
    items = fields.get("input")
    for index, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict) and item.get("type") == "item_reference":
            message = f"expert {spec.name!r} keeps no state between requests: send the item itself"
            raise _unsupported(message, f"input[{index}].type")


def _check_tools(fields: Mapping[str, Any], spec: ExpertSpec) -> None:
    tools = fields.get("tools")
    for index, tool in enumerate(tools if isinstance(tools, list) else ()):
        kind = tool.get("type") if isinstance(tool, dict) else ""
        if kind not in _TOOL_TYPES:
            message = f"expert {spec.name!r} has no built-in tools: tools[{index}].type must be function or custom"
            raise _unsupported(message, f"tools[{index}].type")


def _check_blocks(messages: Sequence[Any], spec: ExpertSpec) -> None:
    for number, message in enumerate(messages):
        content = message.get("content")
        for index, block in enumerate(content if isinstance(content, list) else ()):
            kind, source, where = block.get("type"), block.get("source"), f"messages[{number}].content[{index}]"
            if kind not in _BLOCK_TYPES:
                raise _unsupported(f"expert {spec.name!r} does not accept blocks of type {kind!r}", f"{where}.type")
            if kind == "document" and (not isinstance(source, dict) or source.get("type") != "base64"):
                message = f"expert {spec.name!r} accepts documents as base64 only: send {where} as a block of type text"
                raise _unsupported(message, f"{where}.source.type")


def _check_logprobs(fields: Mapping[str, Any], spec: ExpertSpec) -> None:
    """litellm's translation to chat drops them; a provider called in its own API may return them."""
    included = _LOGPROBS in (fields.get("include") or ())
    name = "top_logprobs" if fields.get("top_logprobs") else "include" if included else ""
    if name and spec.runtime != "litellm":
        raise _unsupported(f"expert {spec.name!r} returns logprobs in chat completions only: omit {name}", name)


def _translated_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a Messages request that litellm knows under another name."""
    translated: dict[str, Any] = {}
    config, choice = fields.get("output_config"), fields.get("tool_choice") or {}
    if isinstance(config, dict) and config.get("format"):
        translated["output_format"] = config["format"]
    if fields.get("tools") and choice.get("disable_parallel_tool_use"):  # without tools OpenAI rejects the field
        translated["parallel_tool_calls"] = False
    return translated


def _unsupported(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="unsupported_api")


def to_json_types(item: Any) -> dict[str, Any]:
    """Converts an item of litellm (a pydantic model, a mapping or an event's bytes) into JSON types."""
    if isinstance(item, bytes):
        item = orjson.loads(item.partition(b"data:")[2])
    elif not isinstance(item, dict):
        item = item.model_dump(mode="json", exclude_none=True, warnings=False)
    for choice in item.get("choices", ()):  # OpenAI sends these two even if they are null
        choice.setdefault("finish_reason", None)
        if "message" in choice:
            choice["message"].setdefault("content", None)
    converted: dict[str, Any] = item
    return converted


def with_expert_name(answer: dict[str, Any], name: str) -> dict[str, Any]:
    """Replaces the model name by the expert's name, by which the client knows it."""
    for place in (answer, answer.get("response"), answer.get("message")):
        if isinstance(place, dict) and "model" in place:
            place["model"] = name
    return answer


def to_event(event: dict[str, Any]) -> bytes:
    """Serializes an event; those of chat have no name."""
    kind, data = event.get("type"), orjson.dumps(event)
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data) if isinstance(kind, str) else b"data: %b\n\n" % data


def has_content(event: dict[str, Any]) -> bool:
    """True if an event can only come from the server. litellm emits the opening and the end of an answer even if it
    received none (a login page, an error with status 200)."""
    kind = event.get("type")
    if kind is None:
        return any(choice.get("delta") for choice in event.get("choices", ()))
    if kind == "content_block_start":
        return bool(event["content_block"]["type"] != "text")
    if kind == "response.output_item.added":
        return bool(event["item"]["type"] != "message")
    return kind == "content_block_delta" or str(kind).endswith(".delta")
