"""What litellm gives back: its items as JSON's own types, and which of a stream's events say something."""

from __future__ import annotations

from typing import Any

import orjson


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
