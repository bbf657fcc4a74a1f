"""Which expert a conversation is with, so that a follow-up stays there: same style, warm prefix cache."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Protocol

from coe.core import Chat, RequestOptions

LIMIT = 50_000
"""Conversations remembered; the ones longest unheard of give way. About 15 MB."""
_OPENING = 2000


class SharedAffinity(Protocol):
    """What other gateways know of conversations. Neither call fails, and `ask` is quick: not knowing is an answer."""

    def tell(self, key: bytes, expert: str) -> None: ...

    async def ask(self, key: bytes) -> str | None: ...


class Affinity:
    """The last expert of each recent conversation, in this process's memory; forgetting is no error.

    Where there is an `elsewhere`, it is told of every answer, and asked before a follow-up to an answer that this
    process did not give.
    """

    def __init__(self, *, limit: int = LIMIT, elsewhere: SharedAffinity | None = None) -> None:
        self._experts: OrderedDict[bytes, tuple[str, int]] = OrderedDict()
        self._limit = limit
        self._elsewhere = elsewhere

    def get(self, chat: Chat, options: RequestOptions) -> str | None:
        """The expert that a follow-up would stay with; None for a chat that begins."""
        if not is_follow_up(chat, options.session):
            return None
        known = self._experts.get(conversation_key(chat, options))
        return known and known[0]

    async def recall(self, chat: Chat, options: RequestOptions) -> None:
        """Learn what another gateway knows better, so that `get` tells it."""
        if self._elsewhere is None or not is_follow_up(chat, options.session):
            return
        key, last = conversation_key(chat, options), _answers(chat) - 1
        known = self._experts.get(key)
        if known is not None and known[1] == last:
            return  # the last answer came from here
        if (expert := await self._elsewhere.ask(key)) is not None:
            self._keep(key, expert, last)

    def put(self, chat: Chat, key: bytes, expert: str) -> None:
        """The chat, a conversation of that key, is answered by the expert."""
        self._keep(key, expert, _answers(chat))
        if self._elsewhere is not None:
            self._elsewhere.tell(key, expert)

    def _keep(self, key: bytes, expert: str, answers: int) -> None:
        self._experts[key] = (expert, answers)
        self._experts.move_to_end(key)
        if len(self._experts) > self._limit:
            self._experts.popitem(last=False)


def conversation_key(chat: Chat, options: RequestOptions) -> bytes:
    """What a conversation is known by: the client's session id, or else how it began (up to the first user turn). Of
    another tenant's nothing is found out by guessing either."""
    digest = hashlib.blake2b(f"{options.tenant or ''}\0".encode(), digest_size=16)
    if options.session is not None:
        digest.update(b"session\0" + options.session.encode())
        return digest.digest()
    for message in chat.messages:
        digest.update(f"{message.role}\0{message.text[:_OPENING]}\0".encode("utf-8", "replace"))
        if message.role == "user":
            break
    return digest.digest()


def is_follow_up(chat: Chat, session: str | None) -> bool:
    """Whether something was said before: an earlier answer is in the chat, or the client keeps a session."""
    return session is not None or any(message.role == "assistant" for message in chat.messages)


def _answers(chat: Chat) -> int:
    """How many answers are in the chat already."""
    return sum(message.role == "assistant" for message in chat.messages)
