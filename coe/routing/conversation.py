"""From a conversation to the text that is routed: last user message first, older ones shortened, bounded in length."""

from __future__ import annotations

from collections.abc import Iterator

from coe.core import Chat

MAX_LAST_TURN_CHARACTERS = 3000
"""Length of the last user message. A longer one keeps its head and its tail, where the request usually is."""
MAX_OLDER_TURN_CHARACTERS = (400, 200, 100)
"""Length of the user messages before it, newest first. A follow-up such as "and in Python?" needs them."""
MAX_SYSTEM_PROMPT_CHARACTERS = 200
MIN_USER_CHARACTERS = 40
"""With less user text, the system prompt is included. With more it would only blur the request."""


def routing_text(chat: Chat) -> str:
    """Return the text for the router, about 4,000 characters at most."""
    turns = _user_turns(chat)
    parts = [shorten(next(turns, ""), MAX_LAST_TURN_CHARACTERS)]
    parts += [shorten(turn, limit) for limit, turn in zip(MAX_OLDER_TURN_CHARACTERS, turns, strict=False)]
    if sum(map(len, parts)) < MIN_USER_CHARACTERS:
        system = [message for message in chat.messages[:1] if message.role != "user"]
        parts += [shorten(message.text, MAX_SYSTEM_PROMPT_CHARACTERS) for message in system]
    return "\n".join(part for part in parts if part)


def shorten(text: str, limit: int) -> str:
    """Cut a text to about `limit` characters: two thirds from the head, one third from the tail."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail]}\n{text[-tail:]}"


def _user_turns(chat: Chat) -> Iterator[str]:
    return (message.text for message in reversed(chat.messages) if message.role == "user" and message.text)
