"""Which expert a conversation is with, so that a follow-up stays there: same style, warm prefix cache."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from coe.core import Chat

LIMIT = 50_000
"""Conversations remembered; the ones longest unheard of give way. About 10 MB."""
_OPENING = 2000


class Affinity:
    """The last expert of each recent conversation, in this process's memory; forgetting is no error."""

    def __init__(self, *, limit: int = LIMIT) -> None:
        self._experts: OrderedDict[bytes, str] = OrderedDict()
        self._limit = limit

    def get(self, key: bytes) -> str | None:
        return self._experts.get(key)

    def put(self, key: bytes, expert: str) -> None:
        self._experts[key] = expert
        self._experts.move_to_end(key)
        if len(self._experts) > self._limit:
            self._experts.popitem(last=False)


def conversation_key(chat: Chat, session: str | None) -> bytes:
    """What a conversation is known by: the client's session id, or else how it began (up to the first user turn)."""
    digest = hashlib.blake2b(digest_size=16)
    if session is not None:
        digest.update(b"session\0" + session.encode())
        return digest.digest()
    for message in chat.messages:
        digest.update(f"{message.role}\0{message.text[:_OPENING]}\0".encode("utf-8", "replace"))
        if message.role == "user":
            break
    return digest.digest()


def is_follow_up(chat: Chat, session: str | None) -> bool:
    """Whether something was said before: an earlier answer is in the chat, or the client keeps a session."""
    return session is not None or any(message.role == "assistant" for message in chat.messages)
