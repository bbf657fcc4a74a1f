"""Session affinity: a follow-up stays with its conversation's expert, for the same style and a warm prefix cache."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Protocol

from coe.core import Api, Reply
from coe.routing.conversation import MAX_CALLS, MAX_ID_CHARACTERS, Conversation

MAX_CONVERSATIONS = 50_000
"""Conversations in memory, about 20 MB. The least recently used are evicted."""
_CALL_IDS: Mapping[Api, re.Pattern[bytes]] = {
    "chat": re.compile(rb'"tool_calls"\s*:\s*\[\s*\{[^{}]{0,80}?"id"\s*:\s*"([^"\\]{1,%d})"' % MAX_ID_CHARACTERS),
    "responses": re.compile(rb'"call_id"\s*:\s*"([^"\\]{1,%d})"' % MAX_ID_CHARACTERS),
    "messages": re.compile(rb'"tool_use"[^{}]{0,80}?"id"\s*:\s*"([^"\\]{1,%d})"' % MAX_ID_CHARACTERS),
}
"""The id of a call in an answer, of chat the first one of an event or answer."""


class SharedAffinity(Protocol):
    """Affinity that several gateways share. No method fails; `lookup` is fast and returns None if unknown."""

    def publish(self, keys: Sequence[bytes], expert: str, *, superseded: Sequence[bytes]) -> None:
        """Store the expert under these keys. The `superseded` keys are needed for a short time only."""

    async def lookup(self, keys: Sequence[bytes]) -> str | None:
        """Return the expert of the first key that is known."""


class Affinity:
    """The last expert of each recent conversation, in this process's memory. A lost entry is harmless.

    With `shared`, every entry is published there, and looked up for a follow-up to another gateway's answer.
    """

    def __init__(self, *, limit: int = MAX_CONVERSATIONS, shared: SharedAffinity | None = None) -> None:
        self._experts: OrderedDict[bytes, str] = OrderedDict()
        self._limit = limit
        self._shared = shared

    async def find(self, conversation: Conversation) -> str | None:
        """Return the expert of the conversation's last answer; None for a new conversation."""
        keys = conversation.earlier
        if not keys:
            return None
        if (known := self._experts.get(keys[0])) is not None and keys[0] not in conversation.answer:
            return known
        if self._shared is not None and (expert := await self._shared.lookup(keys)) is not None:
            return expert
        return next((self._experts[key] for key in keys if key in self._experts), None)

    def put(self, conversation: Conversation, expert: str) -> None:
        """Store the expert that answers. The entry of the answer before it is the first to be evicted from now on."""
        superseded = [key for key in conversation.earlier[: conversation.latest] if key not in conversation.answer]
        for key in conversation.answer:
            self._experts[key] = expert
            self._experts.move_to_end(key)
        for key in superseded:
            if key in self._experts:
                self._experts.move_to_end(key, last=False)
        while len(self._experts) > self._limit:
            self._experts.popitem(last=False)
        if self._shared is not None and conversation.answer:
            self._shared.publish(conversation.answer, expert, superseded=superseded)

    def noting_calls(self, reply: Reply, api: Api, conversation: Conversation, expert: str) -> Reply:
        """Return a reply that stores the expert under the ids of the tools that it calls, too."""
        if (pattern := _CALL_IDS.get(api)) is None or not conversation.answer:
            return reply

        def note(call_id: bytes) -> None:
            key = conversation.call_key(call_id.decode("utf-8", "replace"))
            self.put(Conversation((key,)), expert)

        return _CallingReply(reply, pattern, note)


class _CallingReply:
    """Passes a reply on and reports the first ids of its calls as they come."""

    def __init__(self, reply: Reply, pattern: re.Pattern[bytes], note: Callable[[bytes], None]) -> None:
        self.media_type, self.usage = reply.media_type, reply.usage
        self._reply = reply
        self._pattern = pattern
        self._note = note

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        noted: set[bytes] = set()
        async with aclosing(self._reply.chunks()) as chunks:
            async for chunk in chunks:
                for call_id in self._pattern.findall(chunk) if len(noted) < MAX_CALLS else ():
                    if call_id not in noted:
                        noted.add(call_id)
                        self._note(call_id)
                yield chunk

    async def aclose(self) -> None:
        await self._reply.aclose()
