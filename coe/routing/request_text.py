"""Extracts the text to classify from a chat: the user's request, without text that a client or agent harness added.

`read_request` takes the last user message with a request first, shortens older ones, adds the head of the
system prompt if the request says little, and bounds the length. `message_parts` splits each message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate

from coe.core import Chat, Message, frozen
from coe.routing.conversation import newest_turn
from coe.routing.message_parts import (
    CODING_AGENT,
    MAX_MESSAGE_CHARACTERS,
    SPLIT_MESSAGES,
    MessageParts,
    OmittedPart,
    is_coding_agent,
)
from coe.routing.units import has_topic, instruction, is_nudge, refers_to_context

MAX_LAST_TURN_CHARACTERS = 3000
"""Length of the last request. A longer one keeps its head and its tail, where the request usually is."""
MAX_OLDER_TURN_CHARACTERS = (400, 200, 100)
"""Length of the requests before it, newest first. A follow-up such as "and in Python?" needs them."""
MAX_SYSTEM_PROMPT_CHARACTERS = 200
"""Head of the system prompt, which says what the application is for. Its tail is often about format or the session."""
MIN_USER_CHARACTERS = 40
"""With less user text and no topic, the system prompt is included. Otherwise it would only blur the request."""
MAX_MATERIAL_CHARACTERS = 1200
"""Length of the material of a request without a topic, such as "summarise this". With one, the material is left out:
even 100 characters of it decided most predictions."""
TOOL_ROLES = ("tool", "function")
"""Roles of messages with the result of a tool."""
MAX_LEFT_OUT = 40
"""Parts that are reported, of the newest messages first."""
MAX_TURNS = 50
"""User messages that are read, and the first one: an agent's task is often the first of hundreds."""


REASONS: Mapping[str, str] = {
    "block": "a block between tags",
    "tool result": "a tool's result, sent as the user's message",
    "document": "a document of instructions",
    "material": "the text that the request is about",
    "frame": "what a client, a template or courtesy puts around a request",
    "nudge": "a request to continue the task",
    "blank": "no text",
}
"""The meaning of each kind of part."""

MAX_READ_CHARACTERS = 40_000
"""Characters of user messages that are searched for parts in a chat; its first one is searched in any case."""


@frozen
class RoutedText:
    """The text for the router, about 5,000 characters at most, and what it leaves out.

    `newest` are the requests since the last answer alone, with the material that they are about; empty if there is no
    answer or no request since. `continues` is true if the newest turn has no topic of its own, so that it continues the
    task of the last answer. `in_loop` is true if the turn has results of tools that the last answer called. `has_task`
    is true if an earlier request has a topic: after a greeting, there is no task to continue.
    """

    text: str
    left_out: tuple[OmittedPart, ...] = ()
    newest: str = ""
    continues: bool = False
    in_loop: bool = False
    has_task: bool = False


NO_TEXT = RoutedText("")


def routing_text(chat: Chat) -> str:
    """Return the text for the router."""
    return read_request(chat).text


def prompt_text(prompt: str) -> str:
    """Return the text for the router of a chat that consists of this user message."""
    message = (Message("user", prompt),)
    return routing_text(Chat("auto", message, stream=False, needs=frozenset(), characters=len(prompt), fields={}))


def read_request(chat: Chat) -> RoutedText:
    """Return the text for the router and what it leaves out."""
    limits = iter((MAX_LAST_TURN_CHARACTERS, *MAX_OLDER_TURN_CHARACTERS))
    limit = next(limits)
    texts: list[str] = []
    left_out: list[OmittedPart] = []
    turns = _user_turns(chat)
    newest, end = newest_turn(chat.messages)
    count = 0
    has_material = False
    for index in turns:
        parts = SPLIT_MESSAGES.split(chat.messages[index].text, anew=index == len(chat.messages) - 1)
        reason = _omission_kind(parts, is_older=bool(texts), is_only=len(turns) == 1)
        material = ""
        if parts.material and not texts and not reason:
            has_material = True
            if not has_topic(parts.request):
                heads = "\n".join(part[:MAX_MATERIAL_CHARACTERS] for part in parts.material)
                material = shorten(heads, MAX_MATERIAL_CHARACTERS)
        left_out += [replace(cut, message=index, shortened=bool(material) and cut.shortened) for cut in parts.cuts]
        if reason:
            if parts.request or not parts.cuts:
                left_out.append(OmittedPart(reason, "", len(parts.request), message=index))
            continue
        texts += filter(None, (shorten(parts.request, limit), material))
        if index >= newest > 0:
            count = len(texts)
        if (limit := next(limits, 0)) == 0:
            break
    if not texts:  # nothing in the chat has the form of a request
        last = next((one.text for one in reversed(chat.messages) if one.role == "user" and one.text), "")
        texts, left_out = [shorten(last, MAX_LAST_TURN_CHARACTERS)], []
    ending = marks = [CODING_AGENT] if is_coding_agent(chat) else []
    said = "\n".join(texts)
    says_little = len(said) < MIN_USER_CHARACTERS and (refers_to_context(said) or not has_topic(said))
    if says_little and not marks and not has_material:
        ending = [one.text[:MAX_SYSTEM_PROMPT_CHARACTERS] for one in chat.messages[:1] if one.role != "user"]
    in_loop = newest > 0 and any(message.role in TOOL_ROLES for message in chat.messages[newest:end])
    return RoutedText(
        "\n".join([text for text in texts + ending if text]),
        tuple(left_out[:MAX_LEFT_OUT]),
        "" if in_loop or not count else "\n".join(texts[:count] + marks),
        in_loop or (newest > 0 and not count),
        in_loop,
        count > 0 and any(has_topic(chat.messages[index].text) for index in turns if index < newest),
    )


def _user_turns(chat: Chat) -> list[int]:
    """Return the indexes of the user messages to read, newest first."""
    messages = chat.messages
    turns = [n for n in range(len(messages) - 1, -1, -1) if messages[n].role == "user" and messages[n].text]
    totals = accumulate(min(len(messages[n].text), MAX_MESSAGE_CHARACTERS) for n in turns[: MAX_TURNS - 1])
    read = turns[: 1 + sum(total <= MAX_READ_CHARACTERS for total in totals)]
    return read + turns[-1:] if len(read) < len(turns) else read


def _omission_kind(parts: MessageParts, *, is_older: bool, is_only: bool) -> str:
    """Return the kind of part (a key of REASONS) for which a message is not a request; empty if it is one."""
    if not parts.request:
        return parts.cuts[0].kind if parts.cuts else "blank"
    if is_older and sum(cut.characters for cut in parts.cuts) > len(parts.request) and not instruction(parts.request):
        return parts.cuts[0].kind  # an announcement of files, for example
    return "nudge" if not is_only and not parts.material and is_nudge(parts.request) else ""


def shorten(text: str, limit: int) -> str:
    """Cut a text to about `limit` characters: two thirds from the head, one third from the tail."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail]}\n{text[-tail:]}"
