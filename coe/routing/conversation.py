"""Identifies the conversation of a request, and the request before it, by what every request of a conversation repeats.

The key of an answer is a digest of the turns that lead to it. The next request of the conversation has the same turns
before that answer, so it computes the same key. Turns are the user's requests and the ids of tool calls. Left out is
what clients rewrite: system prompts (a clock), results of tools (shortened later), answers, and text that an agent's
harness adds. Such a key follows a conversation through branches and regenerated answers.

An id from the client identifies a conversation only if it is meant to: `x-session-id` and the field `conversation`.
`prompt_cache_key`, `metadata.user_id`, `user` and `safety_identifier` may name a user, an application or a session, so
they only separate: conversations of different ids never share a key. All keys contain the tenant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coe.core import Chat, Message, RequestOptions
from coe.routing.message_parts import split_message

MAX_TURNS = 5
"""Latest turns that identify an answer. A client may cut off older ones."""
MAX_ANSWERS = 3
"""Latest answers that a request may follow. Clients insert answers of their own, and split those with several calls."""
MAX_MESSAGES = 200
"""Messages that are read from the end of a chat."""
MAX_OPENING_MESSAGES = 10
"""Messages that are searched for the first request of a chat."""
MAX_TURN_CHARACTERS = 2000
"""Characters of a request that identify it."""
MAX_ID_CHARACTERS = 512
"""Characters of an id from the client."""
_SEPARATING_FIELDS = ("prompt_cache_key", "safety_identifier", "user")
_KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Conversation:
    """The keys of a request.

    `answer` are the keys for the expert that answers it. `earlier` are the keys under which the expert of the answer
    before it may be known, the surest first; empty if it begins a conversation. `prefix` is the same for all requests
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
    scope += "".join(f"{value}\0" for value in (session, *_separating_ids(chat.fields))).encode("utf-8", "replace")
    turns, answers = _latest_turns(messages)
    ends = [len(messages), *answers]
    before = [[text for index, text in turns if index < end][:MAX_TURNS] for end in ends]
    answer, earlier = (
        tuple(dict.fromkeys(_key(scope, ["turns", *texts]) for texts in some if texts))
        for some in (before[:1], before[1:])
    )
    prefix = by_session[0] if by_session else _key(scope, ["opening", _opening(messages, dict(turns))])
    return Conversation(answer + by_session, earlier + by_session, prefix)


def newest_turn(messages: Sequence[Message]) -> tuple[int, int]:
    """Return the indexes of the first message since the last answer, 0 if there is none, and of the end."""
    end = _end(messages)
    return next((index + 1 for index in range(end - 1, -1, -1) if messages[index].role == "assistant"), 0), end


def _end(messages: Sequence[Message]) -> int:
    """Return the number of messages without the beginning of the next answer, which a client may send."""
    end = len(messages)
    while end > 1 and messages[end - 1].role == "assistant":
        end -= 1
    return end


def _latest_turns(messages: Sequence[Message]) -> tuple[list[tuple[int, str]], list[int]]:
    """Return the latest turns with their indexes, and the index at which each of the latest answers begins, newest
    first."""
    turns: list[tuple[int, str]] = []
    answers: list[int] = []
    needed, end = MAX_TURNS, _end(messages)
    for index in range(end - 1, max(-1, end - 1 - MAX_MESSAGES), -1):
        if messages[index].role == "assistant":
            is_first = index == 0 or messages[index - 1].role != "assistant"
            if is_first and len(answers) < MAX_ANSWERS:
                answers.append(index)
                needed = len(turns) + MAX_TURNS
        elif text := _turn(messages[index]):
            turns.append((index, text))
            if len(turns) >= needed and (len(answers) == MAX_ANSWERS or len(turns) >= MAX_ANSWERS * MAX_TURNS):
                break
    return turns, answers


def _turn(message: Message) -> str:
    """Return the text that identifies a turn; empty if nothing does."""
    if message.role == "user":
        return split_message(message.text).request[:MAX_TURN_CHARACTERS]
    return message.call_id[:MAX_ID_CHARACTERS]


def _opening(messages: Sequence[Message], known: Mapping[int, str]) -> str:
    """Return the first request of a chat, or else its first text of the user. `known` are texts of turns by index."""
    users = [index for index, message in enumerate(messages[:MAX_OPENING_MESSAGES]) if message.role == "user"]
    requests = (known[index] if index in known else _turn(messages[index]) for index in users)
    return next(filter(None, requests), messages[users[0]].text[:MAX_TURN_CHARACTERS] if users else "")


def _separating_ids(fields: Mapping[str, Any]) -> list[str]:
    metadata = fields.get("metadata")
    user = _id(metadata, "user_id") if isinstance(metadata, dict) else ""
    return [user, *(_id(fields, name) for name in _SEPARATING_FIELDS)]


def _id(fields: Mapping[str, Any], name: str) -> str:
    """Return an id from the client, which may be an object that holds it; empty without one."""
    value = fields.get(name)
    if isinstance(value, dict):
        value = value.get("id")
    return value[:MAX_ID_CHARACTERS] if isinstance(value, str) else ""


def _key(scope: bytes, texts: Sequence[str]) -> bytes:
    digest = hashlib.blake2b(scope, digest_size=_KEY_BYTES)
    for text in texts:
        digest.update(text.encode("utf-8", "replace") + b"\0")
    return digest.digest()
