"""Messages of the scripted server: reads a request's view and renders a turn."""

from __future__ import annotations

from typing import Any

import orjson

from tests.clients.matrix.chat_turns import text_in
from tests.clients.matrix.script import Turn, View

INPUT_TOKENS, OUTPUT_TOKENS = 11, 13


def view_of(body: dict[str, Any]) -> View:
    """Read the users' text, the tools and the tool results of a request."""
    contents = [message["content"] for message in body["messages"] if message["role"] == "user"]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    results = [text_in(part.get("content")) for part in parts if part["type"] == "tool_result"]
    tools = [tool["name"] for tool in body.get("tools") or ()]
    return View("\n".join(text_in(content) for content in contents), tuple(tools), tuple(results))


def render(body: dict[str, Any], turn: Turn, number: int) -> tuple[dict[str, Any], list[bytes]]:
    """Return the whole answer and the events of its stream. `number` makes its ids unique."""
    block: dict[str, Any] = {"type": "text", "text": turn.text}
    opening: dict[str, Any] = {"type": "text", "text": ""}
    deltas: list[dict[str, Any]] = [{"type": "text_delta", "text": word} for word in turn.words]
    if turn.tool:
        block = {"type": "tool_use", "id": f"toolu_{number}", "name": turn.tool, "input": turn.arguments}
        opening = block | {"input": {}}
        arguments = orjson.dumps(turn.arguments).decode()
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in (arguments[:4], arguments[4:])]
    reason = "tool_use" if turn.tool else "end_turn"
    usage = {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS}
    whole = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [block],
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": usage,
    }
    started = whole | {"content": [], "stop_reason": None, "usage": usage | {"output_tokens": 1}}
    events = [
        {"type": "message_start", "message": started},
        {"type": "content_block_start", "index": 0, "content_block": opening},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": None},
            "usage": {"output_tokens": OUTPUT_TOKENS},
        },
        {"type": "message_stop"},
    ]
    return whole, [named_event(event) for event in events]


def named_event(event: dict[str, Any]) -> bytes:
    """Return an event of a stream, named by its type."""
    return b"event: %s\ndata: %s\n\n" % (event["type"].encode(), orjson.dumps(event))
