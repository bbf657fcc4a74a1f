"""Responses of the scripted server: reads a request's view, renders a turn, and stores answers as OpenAI does.

A server that stores answers accepts `previous_response_id` and items of type `item_reference`.
"""

from __future__ import annotations

from typing import Any

import orjson

from tests.clients.matrix.chat_turns import text_in
from tests.clients.matrix.messages_turns import named_event
from tests.clients.matrix.script import Turn, View

USAGE = {
    "input_tokens": 11,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 13,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 24,
}
_RESULTS = ("function_call_output", "custom_tool_call_output", "local_shell_call_output")


class Stored:
    """The stored answers: whole conversations by id of the answer, and items by id."""

    def __init__(self) -> None:
        self._conversations: dict[str, list[dict[str, Any]]] = {}
        self._items: dict[str, dict[str, Any]] = {}

    def view_of(self, body: dict[str, Any]) -> View:
        """Read the users' text, the tools and the tool results. Raises LookupError for an unknown reference."""
        items = self._items_of(body)
        texts = [text_in(item.get("content")) for item in items if item.get("role") == "user"]
        results = [text_in(item.get("output")) for item in items if item.get("type") in _RESULTS]
        tools = [tool["name"] for tool in body.get("tools") or () if tool["type"] == "function"]
        return View("\n".join(texts), tuple(tools), tuple(results))

    def render(self, body: dict[str, Any], turn: Turn, number: int) -> tuple[dict[str, Any], list[bytes]]:
        """Return the whole answer and the events of its stream. Stores the answer unless `store` is false.
        `number` makes its ids unique."""
        item = _item(turn, number)
        whole = {
            "id": f"resp_{number}",
            "object": "response",
            "created_at": 1,
            "status": "completed",
            "error": None,
            "incomplete_details": None,
            "instructions": body.get("instructions"),
            "metadata": {},
            "model": body["model"],
            "output": [item],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": body.get("tools") or [],
            "usage": USAGE,
        }
        if body.get("store") is not False:
            self._items[item["id"]] = item
            self._conversations[str(whole["id"])] = [*self._items_of(body), item]
        return whole, [
            named_event(event | {"sequence_number": n}) for n, event in enumerate(_events(whole, item, turn))
        ]

    def _items_of(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        given = body.get("input") or []
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        earlier: list[dict[str, Any]] = []
        if (previous := body.get("previous_response_id")) is not None:
            if previous not in self._conversations:
                raise LookupError(f"Previous response with id '{previous}' not found.")
            earlier = self._conversations[previous]
        return [*earlier, *(self._resolved(item) for item in items)]

    def _resolved(self, item: dict[str, Any]) -> dict[str, Any]:
        if item.get("type") != "item_reference":
            return item
        if item["id"] not in self._items:
            raise LookupError(f"Item with id '{item['id']}' not found.")
        return self._items[item["id"]]


def _item(turn: Turn, number: int) -> dict[str, Any]:
    if turn.tool:
        arguments = orjson.dumps(turn.arguments).decode()
        call = {"call_id": f"call_{number}", "name": turn.tool, "arguments": arguments}
        return {"id": f"fc_{number}", "type": "function_call", "status": "completed", **call}
    content = [{"type": "output_text", "text": turn.text, "annotations": []}]
    return {"id": f"msg_{number}", "type": "message", "status": "completed", "role": "assistant", "content": content}


def _events(whole: dict[str, Any], item: dict[str, Any], turn: Turn) -> list[dict[str, Any]]:
    started = whole | {"status": "in_progress", "output": [], "usage": None}
    place = {"item_id": item["id"], "output_index": 0}
    if turn.tool:
        opening = item | {"status": "in_progress", "arguments": ""}
        arguments = item["arguments"]
        inner = [
            {"type": "response.function_call_arguments.delta", **place, "delta": piece}
            for piece in (arguments[:4], arguments[4:])
        ]
        inner.append({"type": "response.function_call_arguments.done", **place, "arguments": arguments})
    else:
        opening = item | {"status": "in_progress", "content": []}
        place |= {"content_index": 0}
        part = item["content"][0]
        inner = [{"type": "response.content_part.added", **place, "part": part | {"text": ""}}]
        inner += [{"type": "response.output_text.delta", **place, "delta": word, "logprobs": []} for word in turn.words]
        inner.append({"type": "response.output_text.done", **place, "text": turn.text, "logprobs": []})
        inner.append({"type": "response.content_part.done", **place, "part": part})
    return [
        {"type": "response.created", "response": started},
        {"type": "response.in_progress", "response": started},
        {"type": "response.output_item.added", "output_index": 0, "item": opening},
        *inner,
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]
