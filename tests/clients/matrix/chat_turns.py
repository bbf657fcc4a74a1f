"""Chat Completions of the scripted server: reads a request's view and renders a turn."""

from __future__ import annotations

from typing import Any

import orjson

from tests.clients.matrix.script import Turn, View

USAGE = {"prompt_tokens": 11, "completion_tokens": 13, "total_tokens": 24}


def view_of(body: dict[str, Any]) -> View:
    """Read the users' text, the tools and the tool results of a request."""
    texts = [text_in(message.get("content")) for message in body["messages"] if message["role"] == "user"]
    results = [text_in(message.get("content")) for message in body["messages"] if message["role"] == "tool"]
    tools = [tool["function"]["name"] for tool in body.get("tools") or () if tool["type"] == "function"]
    return View("\n".join(texts), tuple(tools), tuple(results))


def text_in(content: Any) -> str:
    """Return the text of a content, which is a string or a list of parts, in any of the three APIs."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content or () if isinstance(part, dict) and "text" in part)


def render(body: dict[str, Any], turn: Turn, number: int) -> tuple[dict[str, Any], list[bytes]]:
    """Return the whole answer and the events of its stream. `number` makes its ids unique."""
    head = {"id": f"chatcmpl-{number}", "created": 1, "model": body["model"]}
    message: dict[str, Any] = {"role": "assistant", "content": turn.text or None}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": word} for word in turn.words)]
    if turn.tool:
        arguments = orjson.dumps(turn.arguments).decode()
        call = {"id": f"call_{number}", "type": "function"}
        message["tool_calls"] = [call | {"function": {"name": turn.tool, "arguments": arguments}}]
        opening = call | {"index": 0, "function": {"name": turn.tool, "arguments": ""}}
        pieces = (arguments[:4], arguments[4:])
        deltas = [{"role": "assistant", "content": None, "tool_calls": [opening]}]
        deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in pieces]
    reason = "tool_calls" if turn.tool else "stop"
    whole = {
        **head,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}],
        "usage": USAGE,
    }
    choices = [[{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas]
    choices.append([{"index": 0, "delta": {}, "finish_reason": reason}])
    chunks = [{**head, "object": "chat.completion.chunk", "choices": one} for one in choices]
    if (body.get("stream_options") or {}).get("include_usage"):
        chunks.append({**head, "object": "chat.completion.chunk", "choices": [], "usage": USAGE})
    return whole, [b"data: %s\n\n" % orjson.dumps(chunk) for chunk in chunks] + [b"data: [DONE]\n\n"]
