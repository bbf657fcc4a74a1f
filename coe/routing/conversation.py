"""From a conversation to the one text that is routed: last user turn first, older ones shrinking, bounded in length."""

from __future__ import annotations

from collections.abc import Iterator

from coe.core import Chat

LAST_TURN = 3000
"""Characters kept of the last user turn; a longer one keeps its head and its tail, where the request usually stands."""
OLDER_TURNS = (400, 200, 100)
"""Characters kept of the user turns before it, newest first. A follow-up such as "and in Python?" needs them."""
SYSTEM_PROMPT = 200
SHORT = 40
"""Below this many characters of user text the system prompt is read too; above it would only blur what was asked."""


def routing_text(chat: Chat) -> str:
    """The text a router sees, at most about 4,000 characters however long the chat is."""
    turns = _user_turns(chat)
    parts = [shorten(next(turns, ""), LAST_TURN)]
    parts += [shorten(turn, limit) for limit, turn in zip(OLDER_TURNS, turns, strict=False)]
    if sum(map(len, parts)) < SHORT:
        parts += [shorten(message.text, SYSTEM_PROMPT) for message in chat.messages[:1] if message.role != "user"]
    return "\n".join(part for part in parts if part)


def shorten(text: str, limit: int) -> str:
    """Two thirds of the limit from the head and one third from the tail."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail]}\n{text[-tail:]}"


def _user_turns(chat: Chat) -> Iterator[str]:
    return (message.text for message in reversed(chat.messages) if message.role == "user" and message.text)
