"""Identifies the conversation of a request, and the expert that answered in it last.

Clients resend the history with every request, so the key of the previous answer can be recomputed from the new request.

The key of an answer is a digest of the turns that lead to it. The next request of the conversation has the same turns
before that answer, so it computes the same key. Turns are the user's requests and the ids of tool calls. The digest
omits parts that clients rewrite: system prompts (a clock), results of tools (shortened later), answers, and text that
an agent's harness adds. Such a key follows a conversation through branches and regenerated answers.

Of the ids that clients send, only `x-session-id` and the field `conversation` identify a conversation.
`prompt_cache_key`, `metadata.user_id`, `user` and `safety_identifier` may name a user, an application or a session, so
they only separate: conversations of different ids never share a key. All keys contain the tenant.

Conversations of equal turns and ids share keys until a turn differs, such as the id of a tool's call.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from coe.core import Chat, Message, RequestOptions, frozen
from coe.routing.message_parts import MAX_MESSAGE_CHARACTERS, SPLIT_MESSAGES

MAX_TURNS = 5
"""Latest turns that identify an answer. A client may cut off older ones."""
MAX_ANSWERS = 3
"""Latest answers that a request may follow. Clients insert answers of their own, and split those with several calls."""
MAX_MESSAGES = 100
"""Messages that are read from the end of a chat."""
MAX_CHARACTERS = 60_000
"""Characters of user messages that are read, of each one at most MAX_MESSAGE_CHARACTERS."""
MAX_OPENING_MESSAGES = 10
"""Messages that are searched for the first request of a chat."""
MAX_TURN_CHARACTERS = 2000
"""Characters of a request that identify it."""
MAX_ID_CHARACTERS = 512
"""Characters of an id from the client."""
_SEPARATING_FIELDS = ("prompt_cache_key", "safety_identifier", "user")


@frozen
class Conversation:
    """The keys of a request.

    `answer` are the keys for the expert that answers it. `earlier` are the keys under which the expert of the previous
    answer may be stored, most reliable first; empty for a new conversation. `prefix` is the same for all requests
    of a conversation, and empty for embeddings.
    """

    answer: tuple[bytes, ...] = ()
    earlier: tuple[bytes, ...] = ()
    prefix: bytes = b""


def read_conversation(chat: Chat, options: RequestOptions) -> Conversation:
    """Return the keys of a request."""
    messages = chat.messages
    if not messages:
        return Conversation()
    scope = f"{options.tenant or ''}\0".encode()
    session = options.session or _id(chat.fields, "conversation")
    by_session = (_key(scope, ["session", session]),) if session else ()
    metadata = chat.fields.get("metadata")
    user = _id(metadata, "user_id") if isinstance(metadata, dict) else ""
    ids = [session, user, *(_id(chat.fields, name) for name in _SEPARATING_FIELDS), ""]
    scope += "\0".join(ids).encode("utf-8", "replace")
    turns, answers = _latest_turns(messages)
    answer = (_key(scope, ["turns", *[text for _, text in turns[:MAX_TURNS]]]),) if turns else ()
    opening = by_session or (_key(scope, ["opening", _opening(messages)]),)
    if not answers:
        return Conversation(answer + by_session, by_session, opening[0])
    before = [[text for index, text in turns if index < end][:MAX_TURNS] for end in answers]
    earlier = dict.fromkeys([_key(scope, ["turns", *texts]) for texts in before if texts])
    return Conversation(answer + by_session, (*earlier, *by_session), opening[0])


def newest_turn(messages: Sequence[Message]) -> tuple[int, int]:
    """Return the indexes of the first message since the last answer, 0 if there is none, and of the end."""
    end = begin = _end(messages)
    while begin and messages[begin - 1].role != "assistant":
        begin -= 1
    return begin, end


def _end(messages: Sequence[Message]) -> int:
    """Return the number of messages without the beginning of the next answer, which a client may send."""
    end = len(messages)
    while end > 1 and messages[end - 1].role == "assistant":
        end -= 1
    return end


def _latest_turns(messages: Sequence[Message]) -> tuple[list[tuple[int, str]], list[int]]:
    """Return the latest turns with their indexes, as many as the keys need, and the index at which each of the latest
    answers begins, newest first."""
    end = _end(messages)
    turns, answers, remaining, characters = list[tuple[int, str]](), list[int](), MAX_TURNS, 0
    for index in range(end - 1, max(-1, end - 1 - MAX_MESSAGES), -1):
        if messages[index].role == "assistant":
            if not index or messages[index - 1].role != "assistant":
                answers.append(index)
        elif text := _turn(messages[index]):
            turns.append((index, text))
            remaining -= len(answers) >= MAX_ANSWERS
        if messages[index].role == "user":
            characters += min(len(messages[index].text), MAX_MESSAGE_CHARACTERS)
        if not remaining or characters > MAX_CHARACTERS:  # no key needs earlier turns
            break
    return turns, answers[:MAX_ANSWERS]


def _turn(message: Message) -> str:
    """Return the text that identifies a turn; empty if nothing does."""
    if message.role == "user":
        return SPLIT_MESSAGES.split(message.text).request[:MAX_TURN_CHARACTERS]
    return message.call_id[:MAX_ID_CHARACTERS]


def _opening(messages: Sequence[Message]) -> str:
    """Return the first request of a chat, or else its first text of the user."""
    users = [message for message in messages[:MAX_OPENING_MESSAGES] if message.role == "user"]
    return next(filter(None, map(_turn, users)), users[0].text[:MAX_TURN_CHARACTERS] if users else "")


def _id(fields: Mapping[str, Any], name: str) -> str:
    """Return an id from the client, which may be an object that holds it; empty without one."""
    value = fields.get(name)
    if isinstance(value, dict):
        value = value.get("id")
    return value[:MAX_ID_CHARACTERS] if isinstance(value, str) else ""


def _key(scope: bytes, texts: Sequence[str]) -> bytes:
    data = scope + "\0".join([*texts, ""]).encode("utf-8", "replace")
    return hashlib.blake2b(data, digest_size=16).digest()


MAX_CONVERSATIONS = 50_000
"""Conversations in memory, about 20 MB. The least recently used are evicted."""
SHARED_SECONDS = 3600.0
"""Seconds that the expert of a silent conversation is shared: prefix caches forget it sooner."""


class SharedExperts(Protocol):
    """Names of experts that several gateways share. No method fails; `get` is fast, with None for what is unknown."""

    async def get(self, names: Sequence[str]) -> Sequence[bytes | None]: ...

    def put(self, name: str, value: bytes, *, ttl: float) -> None: ...


class Affinity:
    """The last expert of each recent conversation, in this process's memory. A lost entry is harmless.

    With `shared`, every entry is published there, and looked up for a follow-up to another gateway's answer.
    """

    def __init__(self, *, limit: int = MAX_CONVERSATIONS, shared: SharedExperts | None = None) -> None:
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
        if self._shared is not None:
            shared = await self._shared.get([key.hex() for key in keys])
            if (expert := next(filter(None, shared), None)) is not None:
                return expert.decode(errors="replace")
        return next((self._experts[key] for key in keys if key in self._experts), None)

    def put(self, conversation: Conversation, expert: str) -> None:
        """Store the expert that answers. The entry of the answer before it is the first to be evicted from now on."""
        for key in conversation.answer:
            self._experts[key] = expert
            self._experts.move_to_end(key)
        for key in conversation.earlier[:1]:
            if key in self._experts and key not in conversation.answer:
                self._experts.move_to_end(key, last=False)
        while len(self._experts) > self._limit:
            self._experts.popitem(last=False)
        if self._shared is not None:
            for key in conversation.answer:
                self._shared.put(key.hex(), expert.encode(), ttl=SHARED_SECONDS)
