"""Translates a call into litellm's arguments, and litellm's results into JSON objects and events.

Only the API's own fields pass, because litellm reads its settings from the same arguments.
`coe.experts.litellm.expert` uses it for every call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coe.core import Api, Call
from coe.errors import InvalidRequest
from coe.experts.api_formats import API_FORMATS, applicable_defaults
from coe.registry import ExpertSpec

_NAMES: Mapping[Api, str] = {
    "chat": "audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens "
    "messages modalities n parallel_tool_calls prediction presence_penalty reasoning_effort response_format seed stop "
    "stream_options temperature thinking tool_choice tools top_logprobs top_p user verbosity",
    "embeddings": "dimensions encoding_format input user",
}
FIELDS: Mapping[Api, frozenset[str]] = {api: frozenset(names.split()) for api, names in _NAMES.items()}
"""Request fields that pass. litellm reads its own settings (api_base, mock_response, fallbacks and many more) from the
same arguments; otherwise a client could send the expert's key to its own address."""


def litellm_arguments(call: Call, spec: ExpertSpec) -> dict[str, Any]:
    """The declared parameters, then the client's fields, then the expert's system prompt. Raises InvalidRequest for
    what cannot be translated."""
    if call.api not in FIELDS:
        message = f"expert {spec.name!r} cannot answer the {call.api} API"
        raise InvalidRequest(message, param="model", code="unsupported_api")
    api_format = API_FORMATS[call.api]
    fields = {name: call.fields[name] for name in FIELDS[call.api] & call.fields.keys()}
    arguments = {**applicable_defaults(api_format.defaults(spec.parameters), fields), **fields}
    if spec.system_prompt:
        arguments |= api_format.system_prompt_fields(arguments, spec.system_prompt)
    if call.api == "chat" and call.stream:
        arguments["stream_options"] = {"include_usage": True}  # for CoE's own counts
    if call.api != "embeddings":
        arguments["stream"] = call.stream
    return arguments


def plain(item: Any, *, name: str) -> dict[str, Any]:
    """An item of litellm (a pydantic model or a mapping) in JSON types, with the expert's name as the model's."""
    if not isinstance(item, dict):
        item = item.model_dump(mode="json", exclude_none=True, warnings=False)
    answer: dict[str, Any] = item
    for choice in answer.get("choices", ()):  # OpenAI sends these two even if they are null
        choice.setdefault("finish_reason", None)
        if "message" in choice:
            choice["message"].setdefault("content", None)
    if "model" in answer:
        answer["model"] = name
    return answer
