"""Collects the messages of a chat from the items of another API.

The other APIs hold in separate items or blocks what chat holds in one message: the text and tool calls of an
assistant's turn. And they hold in one item what chat separates: a tool's result with an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
