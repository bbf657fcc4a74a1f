"""What differs between the APIs that an expert's server may speak: paths, prompts, and how answers show their facts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from coe.core import Api, Usage
from coe.experts.http import sse

Fields = Mapping[str, Any]
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Names of what bounds an answer's tokens."""
MOST_TOKENS = 2**48
"""In one answer; more than that no log has a place for once it is added up."""

_RESPONSES_PREAMBLE = sse.Types("response.created", "response.queued", "response.in_progress")
_RESPONSES_END = sse.Types("response.completed", "response.incomplete")
_RESPONSES_FAILURE = sse.Types("response.failed", "error")
_MESSAGES_PREAMBLE = sse.Types("message_start", "ping", "message_stop")  # why it stops a message_delta says
_MESSAGES_USAGE = sse.Types("message_start", "message_delta")
_MESSAGES_END = sse.Types("message_stop")


@dataclass(frozen=True, slots=True)
class ApiFormat:
    """One API as its servers speak it.

    `answer` is the field that every plain answer has. Of a stream's events, `preamble` tells those that say nothing
    yet, or nothing at all where no other comes, `done` the end, `finished` that nothing but the end is missing,
    `failure` gives what an error event carries, `usages` the token counts; `end` is added where a server leaves it out.
    `prompted` gives the fields that a system prompt changes, `defaults` the declared parameters in this API's terms.
    """

    path: str
    answer: str
    done: Callable[[bytes], bool]
    finished: Callable[[bytes], bool]
    failure: Callable[[bytes], Any]
    usages: Callable[[bytes], Iterator[Any]]
    prompted: Callable[[Fields, str], Fields]
    defaults: Callable[[Fields], Fields] = dict
    preamble: Callable[[Any], bool] = sse.never
    end: bytes = b""


def with_system_prompt(messages: list[dict[str, Any]], prompt: str) -> list[dict[str, Any]]:
    """The messages with `prompt` first, joined to the client's own system prompt: many chat templates know only one."""
    head = messages[0]
    if head["role"] not in ("system", "developer"):
        return [{"role": "system", "content": prompt}, *messages]
    return [{**head, "content": _joined(prompt, head.get("content"))}, *messages[1:]]


def unsaid(defaults: Fields, fields: Fields) -> Fields:
    """The declared parameters without a limit on the answer's length where the request has one: it may go by another
    name, and servers refuse two or obey the wrong one."""
    if all(fields.get(name) is None for name in LENGTHS):
        return defaults
    return {name: value for name, value in defaults.items() if name not in LENGTHS}


def count(usage: Usage, told: Any) -> None:
    """Take over the token counts of one `usage` object, by whichever names it has.

    Anthropic counts the cached part of a prompt apart from the rest; here it is part of the input as elsewhere."""
    if not isinstance(told, dict):
        return
    given = told.get("prompt_tokens", told.get("input_tokens"))
    if _is_count(given):
        cached = (told.get("cache_creation_input_tokens"), told.get("cache_read_input_tokens"))
        usage.input_tokens = given + sum(part for part in cached if _is_count(part))
    made = told.get("completion_tokens", told.get("output_tokens"))
    if _is_count(made):
        usage.output_tokens = made


def empty_answer(usage: Usage) -> bool:
    """Whether a stream that said nothing is an answer all the same: one whose tokens were counted. An opening that
    counts the input, as every one of Messages does, is none."""
    return bool(usage.input_tokens) and usage.output_tokens is not None


def _is_count(told: Any) -> TypeGuard[int]:
    """Servers say -1 where they do not know, and anything else by mistake; a sum of that would fall."""
    return type(told) is int and 0 <= told <= MOST_TOKENS


def _joined(prompt: str, own: Any) -> Any:
    if isinstance(own, list):
        return [{"type": "text", "text": prompt}, *own]
    return f"{prompt}\n\n{own}" if own else prompt


def _no_prompt(_: Fields, __: str) -> Fields:
    return {}


def _chat_usages(events: bytes) -> Iterator[Any]:
    if found := sse.usage(events):
        yield found


def _responses_defaults(parameters: Fields) -> Fields:
    names = {"max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens"}
    return {names.get(name, name): value for name, value in parameters.items()}


def _responses_failure(events: bytes) -> Any:
    event = next(_RESPONSES_FAILURE.among(events), None)
    return event and (event.get("response") or event)


def _responses_usages(events: bytes) -> Iterator[Any]:
    for event in _RESPONSES_END.among(events):
        if isinstance(response := event.get("response"), dict):
            yield response.get("usage")


def _messages_usages(events: bytes) -> Iterator[Any]:
    for event in _MESSAGES_USAGE.among(events):
        if event.get("type") == "message_delta":
            yield event.get("usage")
        elif isinstance(message := event.get("message"), dict) and isinstance(begun := message.get("usage"), dict):
            yield {**begun, "output_tokens": None}  # those of the opening alone


_CHAT = ApiFormat(
    path="chat/completions",
    answer="choices",
    done=sse.done,
    finished=sse.finished,
    failure=sse.error,
    usages=_chat_usages,
    prompted=lambda fields, prompt: {"messages": with_system_prompt(fields["messages"], prompt)},
    preamble=sse.choiceless,
    end=sse.DONE,
)
WIRES: Mapping[Api, ApiFormat] = {
    "chat": _CHAT,
    "completions": ApiFormat(
        path="completions",
        answer="choices",
        done=sse.done,
        finished=sse.finished,
        failure=sse.error,
        usages=_chat_usages,
        prompted=_no_prompt,
        preamble=sse.choiceless,
        end=sse.DONE,
    ),
    "responses": ApiFormat(
        path="responses",
        answer="output",
        done=lambda events: next(_RESPONSES_END.among(events), None) is not None,
        finished=sse.never,
        failure=_responses_failure,
        usages=_responses_usages,
        prompted=lambda fields, prompt: {"instructions": _joined(prompt, fields.get("instructions"))},
        defaults=_responses_defaults,
        preamble=_RESPONSES_PREAMBLE.fits,
    ),
    "messages": ApiFormat(
        path="messages",
        answer="content",
        done=lambda events: next(_MESSAGES_END.among(events), None) is not None,
        finished=sse.never,
        failure=sse.error,
        usages=_messages_usages,
        prompted=lambda fields, prompt: {"system": _joined(prompt, fields.get("system"))},
        preamble=_MESSAGES_PREAMBLE.fits,
    ),
    "embeddings": ApiFormat(
        path="embeddings",
        answer="data",
        done=sse.never,
        finished=sse.never,
        failure=sse.error,
        usages=_chat_usages,
        prompted=_no_prompt,
    ),
}
