"""Which fields and headers of a request litellm is given: the API's own, none that would steer litellm itself.

What litellm gives back: its items as JSON's own types, and which of a stream's events say something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from coe.core import Api, Call
from coe.errors import InvalidRequest
from coe.experts.api_formats import WIRES, unsaid
from coe.registry import ExpertSpec

MAX_TOKENS = 4096
"""Where a Messages request says nothing; Anthropic's API has no default."""

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
"""litellm takes its own settings (api_base, mock_response, fallbacks and many more) from the same arguments: a field
that is not of the API must never reach it, or a client could send the expert's key to an address of its own."""

_LOGPROBS = "message.output_text.logprobs"
_KEPT_STATE = ("previous_response_id", "conversation", "prompt")
_TOOLS = (None, "function", "custom")
_SHAPES: Mapping[str, Mapping[str, type]] = {
    "responses": {"tools": list, "reasoning": dict, "text": dict, "include": list},
    "messages": {"tools": list, "tool_choice": dict, "thinking": dict, "stop_sequences": list},
}
"""What litellm would stumble over, as if the expert had answered nonsense."""
_BLOCKS = ("text", "image", "document", "tool_use", "tool_result", "thinking", "redacted_thinking")
"""Of a Messages request, what it translates; the rest it would leave out without a word."""


def arguments(call: Call, spec: ExpertSpec) -> dict[str, Any]:
    """The declared parameters, then what the client may set, then the expert's system prompt. Raises InvalidRequest for
    what cannot be translated."""
    if call.api not in FIELDS:
        raise _unsupported(f"expert {spec.name!r} cannot answer the {call.api} API", "model")
    _check_shapes(call.api, call.fields)
    _check_state(call.fields, spec)
    _check_tools(call.fields, spec)
    if call.api == "messages":
        _check_blocks(call.fields["messages"], spec)
    if call.api == "responses":
        _check_logprobs(call.fields, spec)
    wire, known = WIRES[call.api], FIELDS[call.api]
    said = {name: call.fields[name] for name in known & call.fields.keys()}
    found = {**unsaid(wire.defaults(spec.parameters), said), **said}
    if call.api == "messages":
        found.setdefault("max_tokens", MAX_TOKENS)
        found |= _in_other_words(call.fields)
    if spec.system_prompt:
        found |= wire.prompted(found, spec.system_prompt)
    if call.api == "chat" and call.stream:
        found["stream_options"] = {"include_usage": True}  # for our own counts; the client is shown them if it asked
    if call.api != "embeddings":
        found["stream"] = call.stream
    return found


def passed(call: Call, spec: ExpertSpec) -> dict[str, str]:
    """The headers of the call that go on. The betas of a Messages request mean something to Anthropic alone, where
    litellm sends those that it knows; the version is litellm's own, as it writes the request anew."""
    anthropic = spec.runtime == "litellm" and spec.model.startswith("anthropic/")
    kept = ("anthropic-version",) if anthropic else ("anthropic-version", "anthropic-beta")
    return {name: value for name, value in call.headers.items() if name not in kept}


def _check_shapes(api: Api, fields: Mapping[str, Any]) -> None:
    for name, shape in _SHAPES.get(api, {}).items():
        if fields.get(name) is not None and not isinstance(fields[name], shape):
            raise InvalidRequest(f"{name} must be {'a list' if shape is list else 'an object'}", param=name)


def _check_state(fields: Mapping[str, Any], spec: ExpertSpec) -> None:
    for name in _KEPT_STATE:
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
        if kind not in _TOOLS:
            message = f"expert {spec.name!r} has no built-in tools: tools[{index}].type must be function or custom"
            raise _unsupported(message, f"tools[{index}].type")


def _check_blocks(messages: Sequence[Any], spec: ExpertSpec) -> None:
    for number, message in enumerate(messages):
        content = message.get("content")
        for index, block in enumerate(content if isinstance(content, list) else ()):
            kind, source, where = block.get("type"), block.get("source"), f"messages[{number}].content[{index}]"
            if kind not in _BLOCKS:
                raise _unsupported(f"expert {spec.name!r} cannot be given a block of type {kind!r}", f"{where}.type")
            if kind == "document" and (not isinstance(source, dict) or source.get("type") != "base64"):
                told = f"expert {spec.name!r} is given documents as base64 alone: send {where} as a block of type text"
                raise _unsupported(told, f"{where}.source.type")


def _check_logprobs(fields: Mapping[str, Any], spec: ExpertSpec) -> None:
    """litellm's translation has no place for them in its answers; a provider it may ask in the provider's own API."""
    included = _LOGPROBS in (fields.get("include") or ())
    name = "top_logprobs" if fields.get("top_logprobs") else "include" if included else ""
    if name and spec.runtime != "litellm":
        raise _unsupported(f"expert {spec.name!r} gives logprobs in chat completions alone: leave {name} out", name)


def _in_other_words(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a Messages request says in words that litellm does not know."""
    found: dict[str, Any] = {}
    config, choice = fields.get("output_config"), fields.get("tool_choice") or {}
    if isinstance(config, dict) and config.get("format"):
        found["output_format"] = config["format"]
    if fields.get("tools") and choice.get("disable_parallel_tool_use"):  # without tools OpenAI refuses the field
        found["parallel_tool_calls"] = False
    return found


def _unsupported(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="unsupported_api")


def plain(item: Any) -> dict[str, Any]:
    """An item (a pydantic model, a mapping or an event's bytes) as JSON's own types."""
    if isinstance(item, bytes):
        item = orjson.loads(item.partition(b"data:")[2])
    elif not isinstance(item, dict):
        item = item.model_dump(mode="json", exclude_none=True, warnings=False)
    for choice in item.get("choices", ()):  # OpenAI writes these two also where they are null
        choice.setdefault("finish_reason", None)
        if "message" in choice:
            choice["message"].setdefault("content", None)
    found: dict[str, Any] = item
    return found


def named(answer: dict[str, Any], name: str) -> dict[str, Any]:
    """The client knows the expert by its name."""
    for place in (answer, answer.get("response"), answer.get("message")):
        if isinstance(place, dict) and "model" in place:
            place["model"] = name
    return answer


def written(event: dict[str, Any]) -> bytes:
    """The event as it goes over the wire; those of chat have no name."""
    kind, data = event.get("type"), orjson.dumps(event)
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data) if isinstance(kind, str) else b"data: %b\n\n" % data


def says_something(event: dict[str, Any]) -> bool:
    """Whether an event can only come from the server. litellm makes up the opening and the end of an answer also where
    it read none (a login page, an error under HTTP 200)."""
    kind = event.get("type")
    if kind is None:
        return any(choice.get("delta") for choice in event.get("choices", ()))
    if kind == "content_block_start":
        return bool(event["content_block"]["type"] != "text")
    if kind == "response.output_item.added":
        return bool(event["item"]["type"] != "message")
    return kind == "content_block_delta" or str(kind).endswith(".delta")
