"""Describes each API of expert servers by one `ApiFormat`: chat, completions, responses, messages, embeddings and the
pass-through APIs.

A format holds the path, the request fields that hold a system prompt, and functions that read responses. These find
content, the end, failures and token counts. HTTP experts and litellm experts use the formats.

Leaves fields and items out of a request so that a server accepts it, and reports them.

A server may reject fields of which the client can do without (`Call.optional`), and items of a Responses conversation
that another server wrote. The request is then sent again without them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from coe.core import PASS_THROUGH_APIS, Api, Call
from coe.errors import ExpertError, ExpertRejected
from coe.experts.http import sse
from coe.usage import Usage

Fields = Mapping[str, Any]
LENGTH_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Request fields that limit the number of output tokens."""
CHAT_LENGTH_FIELDS = ("max_tokens", "max_completion_tokens")
"""The same fields of Chat Completions."""
MAX_TOKEN_COUNT = 2**48
"""Largest token count that is believed. Sums of such counts still fit into 64 bits."""

_RESPONSES_PREAMBLE = sse.EventTypes("response.created", "response.queued", "response.in_progress")
_RESPONSES_END = sse.EventTypes("response.completed", "response.incomplete")
_RESPONSES_FAILURE = sse.EventTypes("response.failed", "error")
_MESSAGES_PREAMBLE = sse.EventTypes("message_start", "ping", "message_stop")  # a message_delta holds the stop reason
_MESSAGES_USAGE = sse.EventTypes("message_start", "message_delta")
_MESSAGES_END = sse.EventTypes("message_stop")


@dataclass(frozen=True, slots=True)
class ApiFormat:
    """One API, as its servers speak it.

    Every non-streaming response has the field `answer_field`. The rest read the events of a stream: `preamble` matches
    events without content, `done` the end of the stream, `finished` that only the end is missing. `failure` returns
    what an error event carries, `usages` the token counts. `end` is appended if a server omits it.
    `system_prompt_fields` returns the request fields that a system prompt changes, `defaults` the declared parameters
    under this API's names.
    """

    path: str
    """Below the server's base URL; with a slash before it, below its root."""
    answer_field: str
    failure: Callable[[bytes], Any]
    usages: Callable[[bytes], Iterator[Any]]
    done: Callable[[bytes], bool] = sse.never
    finished: Callable[[bytes], bool] = sse.never
    system_prompt_fields: Callable[[Fields, str], Fields] = lambda fields, prompt: {}
    defaults: Callable[[Fields], Fields] = dict
    preamble: Callable[[Any], bool] = sse.never
    end: bytes = b""


def with_system_prompt(messages: list[dict[str, Any]], prompt: str) -> list[dict[str, Any]]:
    """Prepends `prompt` to the messages. It is merged into the client's own system prompt, because many chat templates
    accept only one."""
    head = messages[0]
    if head["role"] not in ("system", "developer"):
        return [{"role": "system", "content": prompt}, *messages]
    return [{**head, "content": _joined(prompt, head.get("content"))}, *messages[1:]]


def applicable_defaults(defaults: Fields, fields: Fields) -> Fields:
    """Drops the declared output limit if the request has one, whatever its name: servers refuse two limits or obey the
    wrong one."""
    if not defaults or fields.keys().isdisjoint(LENGTH_FIELDS):
        return defaults
    if all(fields.get(name) is None for name in LENGTH_FIELDS):
        return defaults
    return {name: value for name, value in defaults.items() if name not in LENGTH_FIELDS}


def record_usage(usage: Usage, counts: Any) -> None:
    """Copies the token counts of a `usage` object into `usage`, whichever names it uses.

    Anthropic counts the cached part of a prompt separately; here it is part of the input tokens, as elsewhere.
    """
    if not isinstance(counts, dict):
        return
    prompt = counts.get("prompt_tokens", counts.get("input_tokens"))
    if _is_count(prompt):
        details = counts.get("prompt_tokens_details", counts.get("input_tokens_details"))
        read = counts.get("cache_read_input_tokens")
        if "prompt_tokens" in counts or isinstance(details, dict):  # OpenAI: the cached tokens are counted in it
            read = details.get("cached_tokens", read) if isinstance(details, dict) else read
        else:
            separate = (counts.get("cache_creation_input_tokens"), read)
            prompt += sum(part for part in separate if _is_count(part))
        usage.input_tokens = prompt
        usage.cached_tokens = min(read, prompt) if _is_count(read) else None
    completion = counts.get("completion_tokens", counts.get("output_tokens"))
    if _is_count(completion):
        usage.output_tokens = completion
        details = counts.get("completion_tokens_details", counts.get("output_tokens_details"))
        reasoning = details.get("reasoning_tokens") if isinstance(details, dict) else None
        usage.reasoning_tokens = min(reasoning, completion) if _is_count(reasoning) else None


def _is_count(value: Any) -> TypeGuard[int]:
    """Servers send -1 for unknown counts, and other values by mistake. A sum must not decrease."""
    return type(value) is int and 0 <= value <= MAX_TOKEN_COUNT


def _joined(prompt: str, own: Any) -> Any:
    if isinstance(own, list):
        return [{"type": "text", "text": prompt}, *own]
    return f"{prompt}\n\n{own}" if own else prompt


def _chat_usages(events: bytes) -> Iterator[Any]:
    if found := sse.usage(events):
        yield found


def _responses_defaults(parameters: Fields) -> Fields:
    names = {"max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens"}
    renamed = {names.get(name, name): value for name, value in parameters.items()}
    if (effort := renamed.pop("reasoning_effort", None)) is not None:
        renamed["reasoning"] = {"effort": effort} | renamed.get("reasoning", {})
    return renamed


def _responses_failure(events: bytes) -> Any:
    event = next(_RESPONSES_FAILURE.find(events), None)
    return event and (event.get("response") or event)


def _responses_usages(events: bytes) -> Iterator[Any]:
    for event in _RESPONSES_END.find(events):
        if isinstance(response := event.get("response"), dict):
            yield response.get("usage")


def _messages_usages(events: bytes) -> Iterator[Any]:
    for event in _MESSAGES_USAGE.find(events):
        if event.get("type") == "message_delta":
            yield event.get("usage")
        elif isinstance(message := event.get("message"), dict) and isinstance(opening := message.get("usage"), dict):
            yield {**opening, "output_tokens": None}  # which counts the opening alone


_CHAT = ApiFormat(
    path="chat/completions",
    answer_field="choices",
    done=sse.done,
    finished=sse.finished,
    failure=sse.error,
    usages=_chat_usages,
    system_prompt_fields=lambda fields, prompt: {"messages": with_system_prompt(fields["messages"], prompt)},
    preamble=sse.has_no_choice,
    end=sse.DONE,
)
_EMBEDDINGS = ApiFormat(path="embeddings", answer_field="data", failure=sse.error, usages=_chat_usages)
API_FORMATS: Mapping[Api, ApiFormat] = {
    "chat": _CHAT,
    "completions": replace(_CHAT, path="completions", system_prompt_fields=_EMBEDDINGS.system_prompt_fields),
    "responses": ApiFormat(
        path="responses",
        answer_field="output",
        done=lambda events: next(_RESPONSES_END.find(events), None) is not None,
        failure=_responses_failure,
        usages=_responses_usages,
        system_prompt_fields=lambda fields, prompt: {"instructions": _joined(prompt, fields.get("instructions"))},
        defaults=_responses_defaults,
        preamble=_RESPONSES_PREAMBLE.matches,
    ),
    "messages": ApiFormat(
        path="messages",
        answer_field="content",
        done=lambda events: next(_MESSAGES_END.find(events), None) is not None,
        failure=sse.error,
        usages=_messages_usages,
        system_prompt_fields=lambda fields, prompt: {"system": _joined(prompt, fields.get("system"))},
        preamble=_MESSAGES_PREAMBLE.matches,
    ),
    "embeddings": _EMBEDDINGS,
    **{api: replace(_EMBEDDINGS, path=api, answer_field="") for api in PASS_THROUGH_APIS},
    "tokenize": replace(_EMBEDDINGS, path="/tokenize", answer_field=""),  # vLLM serves it outside /v1
}


NEWER_NAMES: Mapping[str, str] = {"max_tokens": "max_completion_tokens"}
"""Fields that are renamed. OpenAI's newer models reject the older name; many other servers ignore the newer one."""
MAX_REPORTED = 10
"""Types that `reported_types` names."""
_TYPE = re.compile(r"[a-z0-9_]{1,40}")
_CLIENT_CALLS = frozenset(
    ("function_call", "custom_tool_call", "local_shell_call", "shell_call", "apply_patch_call", "computer_call")
)
"""Calls of tools that the client runs. All others ran on the server that wrote them."""
_SERVER_ITEMS = ("reasoning", "compaction", "mcp_")
"""Beginnings of the types of other items that only the server that wrote them can read."""


def rejected_field(call: Call, error: ExpertError) -> str:
    """Returns the optional field that a server rejects, empty if it rejects something else. The `param` of an error
    decides where there is one."""
    if not isinstance(error, ExpertRejected):
        return ""
    text, place = str(error), error.param or str(error)
    return next((name for name in sorted(call.optional) if name in place and NEWER_NAMES.get(name, "") in text), "")


def without_field(call: Call, name: str) -> Call:
    """Returns the call without an optional field, or with its newer name."""
    fields = {key: value for key, value in call.fields.items() if key != name}
    if name in NEWER_NAMES:
        fields[NEWER_NAMES[name]] = call.fields[name]
    return replace(call, fields=fields, optional=call.optional - {name})


def without_foreign_items(call: Call, error: ExpertError) -> Call:
    """Returns a rejected call without the ids in its conversation, and without the items that only the server that
    wrote them can read; the same call if nothing changes.

    Clients send items back as a server wrote them. After a change of the expert, the new server rejects what it does
    not know (400 or 404).
    """
    items = call.fields.get("input") if call.api == "responses" else None
    if not isinstance(items, list) or not (isinstance(error, ExpertRejected) or error.cause == "not_found"):
        return call
    kept, dropped = [], []
    for item in items:
        if not isinstance(item, dict) or item.get("type") == "item_reference":  # nothing without its id
            kept.append(item)
        elif _is_readable(item):
            kept.append({name: value for name, value in item.items() if name != "id"})
        else:
            dropped.append(str(item.get("type")))
    if kept == items:
        return call
    if call.dropped is not None:
        call.dropped.update(reported_types(dropped))
    return replace(call, fields={**call.fields, "input": kept})


def reported_types(kinds: Iterable[str]) -> tuple[str, ...]:
    """Returns types as headers and records hold them, each once and at most MAX_REPORTED. A type that is not a word is
    `other`, since it could hold anything."""
    words = (kind if _TYPE.fullmatch(kind) else "other" for kind in kinds)
    return tuple(dict.fromkeys(words))[:MAX_REPORTED]


def _is_readable(item: Mapping[str, Any]) -> bool:
    """True for items that any server can read once they have no id."""
    kind = str(item.get("type", "message"))
    is_sealed = "encrypted_content" in item or kind.startswith(_SERVER_ITEMS)
    return not is_sealed and (not kind.endswith("_call") or kind in _CLIENT_CALLS)
