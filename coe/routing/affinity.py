"""Session affinity: a follow-up stays with its conversation's expert, for the same style and a warm prefix cache."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Protocol

from coe.core import Chat, RequestOptions

MAX_CONVERSATIONS = 50_000
"""Conversations in memory, about 15 MB. The least recently used are evicted."""
_MAX_KEY_CHARACTERS = 2000
"""Characters of each message that identify a conversation."""


class SharedAffinity(Protocol):
    """Affinity that several gateways share. Neither method fails; `lookup` is fast and returns None if unknown."""

    def publish(self, key: bytes, expert: str) -> None: ...

    async def lookup(self, key: bytes) -> str | None: ...


class Affinity:
    """The last expert of each recent conversation, in this process's memory. A lost entry is harmless.

    With `shared`, every entry is published there, and looked up before a follow-up to another gateway's response.
    """

    def __init__(self, *, limit: int = MAX_CONVERSATIONS, shared: SharedAffinity | None = None) -> None:
        self._experts: OrderedDict[bytes, tuple[str, int]] = OrderedDict()
        self._limit = limit
        self._shared = shared

    def get(self, chat: Chat, options: RequestOptions) -> str | None:
        """Return the conversation's expert; None for a new conversation."""
        if not is_follow_up(chat, options.session):
            return None
        known = self._experts.get(conversation_key(chat, options))
        return known and known[0]

    async def refresh(self, chat: Chat, options: RequestOptions) -> None:
        """Look up the conversation in the shared affinity, unless its last response came from this process."""
        if self._shared is None or not is_follow_up(chat, options.session):
            return
        key, responses = conversation_key(chat, options), _response_count(chat) - 1
        known = self._experts.get(key)
        if known is not None and known[1] == responses:
            return
        if (expert := await self._shared.lookup(key)) is not None:
            self._store(key, expert, responses)

    def put(self, chat: Chat, key: bytes, expert: str) -> None:
        """Store the expert that answers the conversation of this key."""
        self._store(key, expert, _response_count(chat))
        if self._shared is not None:
            self._shared.publish(key, expert)

    def _store(self, key: bytes, expert: str, responses: int) -> None:
        self._experts[key] = (expert, responses)
        self._experts.move_to_end(key)
        if len(self._experts) > self._limit:
            self._experts.popitem(last=False)


def conversation_key(chat: Chat, options: RequestOptions) -> bytes:
    """Identify a conversation by the client's session id, or else by its messages up to the first user message.

    The digest includes the tenant, so that no tenant can guess the key of another's conversation.
    """
    digest = hashlib.blake2b(f"{options.tenant or ''}\0".encode(), digest_size=16)
    if options.session is not None:
        digest.update(b"session\0" + options.session.encode())
        return digest.digest()
    for message in chat.messages:
        digest.update(f"{message.role}\0{message.text[:_MAX_KEY_CHARACTERS]}\0".encode("utf-8", "replace"))
        if message.role == "user":
            break
    return digest.digest()


def is_follow_up(chat: Chat, session: str | None) -> bool:
    """True if the chat continues a conversation: it has a response already, or the client sends a session id."""
    return session is not None or any(message.role == "assistant" for message in chat.messages)


def _response_count(chat: Chat) -> int:
    return sum(message.role == "assistant" for message in chat.messages)
