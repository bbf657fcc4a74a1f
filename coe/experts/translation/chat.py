"""Chat Completions as the form between APIs: messages, tools and settings of other APIs in it, answers out of it.

The other APIs hold in separate items or blocks what chat holds in one message: the text and tool calls of an
assistant's turn. And they hold in one item what chat separates: a tool's result with an image. Chat knows functions
only. The functions of a namespace get the namespace in their name. Tools that OpenAI's servers run themselves, such as
web_search, and custom tools have no counterpart and are left out.

A `Delta` is what one chunk of a stream, or a non-streaming answer, adds. `AnswerBuilder` consumes deltas, so that
streams and non-streaming answers share one translation. Servers deviate from OpenAI's form: reasoning has several
names, calls lack their index, and content may be parts.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from coe import json_text
from coe.errors import InvalidRequest

Parts = Sequence[Mapping[str, Any]]


class Conversation:
    """The messages so far. System messages at the beginning become one, since many chat templates accept only one."""

    def __init__(self) -> None:
        self._opening: list[Mapping[str, Any]] = []
        """Parts of the system messages at the beginning."""
        self._messages: list[dict[str, Any]] = []
        self._images: list[Mapping[str, Any]] = []
        """Parts of tool results that chat accepts in messages of users only."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        self._flush()
        opening = [_message("system", self._opening)] if self._opening else []
        return [*opening, *self._messages]

    def add(self, role: str, parts: Parts) -> None:
        """Adds a message of parts; texts alone are joined."""
        if role == "user":
            parts, self._images = [*self._images, *parts], []
        self._flush()
        last = self._messages[-1] if self._messages else None
        if role == "system" and last is None:
            self._opening += parts
        elif role == "assistant" and last is not None and last["role"] == "assistant" and last.get("content") is None:
            last["content"] = _content(parts, "\n")
        else:
            self._messages.append(_message(role, parts))

    def add_call(self, call_id: str, name: str, arguments: str) -> None:
        """Adds a tool call to the assistant's turn."""
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        self._assistant().setdefault("tool_calls", []).append(call)

    def add_result(self, call_id: str, parts: Parts) -> None:
        """Adds the result of a tool call. Its texts are the tool's message; a user's message holds the rest."""
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": text})
        self._images += [part for part in parts if part["type"] != "text"]

    def _assistant(self) -> dict[str, Any]:
        self._flush()
        if not self._messages or self._messages[-1]["role"] != "assistant":
            self._messages.append({"role": "assistant", "content": None})
        return self._messages[-1]

    def _flush(self) -> None:
        if self._images:
            self._messages.append({"role": "user", "content": self._images})
            self._images = []


def text_field(item: Mapping[str, Any], name: str, path: str) -> str:
    """Return a field that must be text. Raises InvalidRequest that names it below `path`."""
    if not isinstance(value := item.get(name), str):
        raise InvalidRequest(f"{path}.{name} must be text", param=f"{path}.{name}")
    return value


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def image_part(url: str, detail: Any = None) -> dict[str, Any]:
    image = {"url": url} if detail is None else {"url": url, "detail": detail}
    return {"type": "image_url", "image_url": image}


def _message(role: str, parts: Parts) -> dict[str, Any]:
    return {"role": role, "content": _content(parts, "\n\n" if role == "system" else "\n")}


def _content(parts: Parts, joint: str) -> Any:
    """Texts as one text, which every server accepts; parts where one is not text or carries more than its text."""
    if all(part.keys() == {"type", "text"} for part in parts):
        return joint.join(part["text"] for part in parts)
    return list(parts)


PASSED_FIELDS = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "logit_bias", "user", "chat_template_kwargs"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)
"""Fields of chat, some of vLLM alone, that pass unchanged where a client sends them in another API."""
EFFORTS: Mapping[str, str] = {
    **{name: name for name in ("none", "minimal", "low", "medium", "high")},
    **dict.fromkeys(("xhigh", "max"), "high"),
}
"""Reasoning efforts of clients, and those that servers of chat know."""
_BUDGETS = ((2_048, "low"), (8_192, "medium"))
"""Largest thinking budgets in tokens that count as this effort; larger ones are high."""


def add_effort(body: dict[str, Any], effort: Any, param: str) -> None:
    """Adds the reasoning effort, if there is one. Raises InvalidRequest for an unknown one."""
    if effort is None:
        return
    if not isinstance(effort, str) or effort not in EFFORTS:
        raise InvalidRequest(f"{param} must be one of {', '.join(EFFORTS)}", param=param)
    body["reasoning_effort"] = EFFORTS[effort]


def effort_of_budget(tokens: Any) -> str:
    """Returns the effort that a thinking budget stands for."""
    return next((effort for limit, effort in _BUDGETS if tokens <= limit), "high")


def output_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Returns chat's output format for a JSON schema, which must have a name."""
    return {"type": "json_schema", "json_schema": {"name": "answer", **schema}}


MAX_NAME = 64
"""Characters of a function's name."""
MAX_CLIENT_NAME = 256
"""Characters of the name of a function or namespace in a request."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions for chat, the client's namespaces and names by theirs, and the types of the tools that were left
    out."""

    functions: tuple[dict[str, Any], ...]
    names: Mapping[str, tuple[str, str]]
    dropped: tuple[str, ...]


def read_tools(tools: Any) -> Tools:
    """Returns the tools of a Responses request. Raises InvalidRequest that names the field."""
    functions, names, dropped = [], {}, []
    for index, tool in enumerate(tools or ()):
        path = f"tools[{index}]"
        is_group = tool.get("type") == "namespace"
        namespace = _name_of(tool, path) if is_group else ""
        for one in (tool.get("tools") or ()) if is_group else (tool,):
            if (kind := one.get("type", "function")) != "function":
                dropped.append(str(kind))
                continue
            name = _name_of(one, path)
            in_chat = chat_name(name, namespace)
            names[in_chat] = (namespace, name)
            fields = ("description", "parameters", "strict")
            function = {key: one[key] for key in fields if one.get(key) is not None}
            functions.append({"type": "function", "function": {"name": in_chat, **function}})
    return Tools(tuple(functions), names, tuple(dropped))


def chat_name(name: str, namespace: str) -> str:
    """Returns the name of a function in chat: unique, and no longer than servers accept."""
    full = f"{namespace}__{name}" if namespace and not name.startswith(f"{namespace}__") else name
    if len(full) <= MAX_NAME or not namespace:
        return full
    return f"{full[: MAX_NAME - 9]}_{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def chat_choice(choice: Any, tools: Tools) -> Mapping[str, Any]:
    """Returns the fields `tools` and `tool_choice` of chat. Raises InvalidRequest for a forced tool that was left
    out."""
    if not tools.functions:
        return {}
    if isinstance(choice, dict):
        name = chat_name(str(choice.get("name") or ""), str(choice.get("namespace") or ""))
        if name not in tools.names:
            message = (
                f"tool_choice forces a tool that this model cannot call: {choice.get('name') or choice.get('type')}"
            )
            raise InvalidRequest(message, param="tool_choice", code="unsupported_api")
        choice = {"type": "function", "function": {"name": name}}
    return {"tools": list(tools.functions), **({} if choice is None else {"tool_choice": choice})}


def _name_of(tool: Mapping[str, Any], path: str) -> str:
    name = tool.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_CLIENT_NAME:  # each tool repeats its namespace's name
        message = f"{path} needs a name of at most {MAX_CLIENT_NAME} characters"
        raise InvalidRequest(message, param=f"{path}.name")
    return name


Event = dict[str, Any]
MAX_CALLS = 1024
"""Tool calls of one answer."""
_REASONING_FIELDS = ("reasoning_content", "reasoning")
"""DeepSeek, litellm and older vLLM; newer vLLM, Ollama and OpenRouter."""


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A part of a tool call. The first part has the name; `arguments` is a piece of the JSON."""

    number: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Delta:
    """A part of an answer."""

    reasoning: str = ""
    text: str = ""
    refusal: str = ""
    calls: tuple[CallDelta, ...] = ()
    finish_reason: str = ""


class ChatReader:
    """Reads one answer. Raises ValueError for anything but a Chat Completions response."""

    def __init__(self) -> None:
        self._calls = 0

    def whole(self, answer: Mapping[str, Any]) -> Delta:
        """Returns the delta of a non-streaming answer."""
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise ValueError("chat without a choice")
        return self._delta(choices[0], "message")

    def deltas(self, events: bytes) -> Iterator[Delta]:
        """Yields the deltas of complete events."""
        for line in events.splitlines():
            if not line.startswith(b"data:") or (data := line[5:].strip()) == b"[DONE]":
                continue
            chunk = json_text.loads(data)
            choices = chunk.get("choices") if isinstance(chunk, dict) else None
            if isinstance(choices, list) and choices and isinstance(choices[0], dict):
                yield self._delta(choices[0], "delta")

    def _delta(self, choice: Mapping[str, Any], field: str) -> Delta:
        message = choice.get(field) or {}
        if not isinstance(message, dict):
            raise ValueError(f"a {field} that is not an object")
        return Delta(
            reasoning=next((text for name in _REASONING_FIELDS if (text := _text(message.get(name)))), ""),
            text=_text(message.get("content")),
            refusal=_text(message.get("refusal")),
            calls=tuple(map(self._call, _objects(message.get("tool_calls")))),
            finish_reason=_text(choice.get("finish_reason")),
        )

    def _call(self, call: Mapping[str, Any]) -> CallDelta:
        """Return one piece of a tool call. Without an `index`, a piece with a name starts the next call."""
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        index, name = call.get("index"), _text(function.get("name"))
        number = index if type(index) is int else self._calls if name else self._calls - 1
        if not 0 <= number <= min(self._calls, MAX_CALLS - 1):
            raise ValueError("tool calls out of order")
        self._calls = max(self._calls, number + 1)
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            arguments = json_text.dumps_with_nan(arguments).decode()
        return CallDelta(number, _text(call.get("id")), name, _text(arguments))


class AnswerBuilder(ABC):
    """Builds one answer, item by item, from the deltas of a chat answer. `answer` is the object that a client without
    a stream gets. Every method returns the events that it causes."""

    kinds: ClassVar[Mapping[str, str]]
    """The kinds of item that hold the texts of a delta, by the name of its field."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = {}
        self.finish_reason = ""
        self.refused = False
        self.calls = 0
        """Tool calls so far."""
        self._open: str | int | None = None
        """The kind of the open item, or the number of its call."""

    def add(self, delta: Delta) -> list[Event]:
        """Raises ValueError for parts of a tool call that has ended: items follow each other."""
        events: list[Event] = []
        for field, kind in self.kinds.items():
            if text := getattr(delta, field):
                if self._open != kind:
                    events += self.close_open() + self.open_text(kind)
                    self._open = kind
                events += self.write(text)
        for call in delta.calls:
            if self._open != call.number:
                if call.number < self.calls:
                    raise ValueError("tool calls out of order")
                events += self.close_open() + self.open_call(call)
                self._open, self.calls = call.number, call.number + 1
            if call.arguments:
                events += self.write(call.arguments)
        self.refused |= bool(delta.refusal)
        self.finish_reason = delta.finish_reason or self.finish_reason
        return events

    def close_open(self) -> list[Event]:
        """Completes the open item, if there is one."""
        was_open, self._open = self._open is not None, None
        return self.close() if was_open else []

    @abstractmethod
    def open_text(self, kind: str) -> list[Event]:
        """Begins an item for a text."""

    @abstractmethod
    def open_call(self, call: CallDelta) -> list[Event]:
        """Begins an item for a tool call."""

    @abstractmethod
    def write(self, text: str) -> list[Event]:
        """Adds text to the open item."""

    @abstractmethod
    def close(self) -> list[Event]:
        """Completes the open item."""


def _text(value: Any) -> str:
    """The text of a field that may be absent, or a list in which only some parts are text."""
    if isinstance(value, list):
        return "".join(_text(part.get("text")) for part in _objects(value))
    return value if isinstance(value, str) else ""


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
