"""Detects an agent that is stuck: the same tool error three times, or the same edit twice, in its latest steps.

Only tool loops of gateways that declare `policy.escalate_stuck_to` are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from coe import json_text
from coe.core import Chat, ExpertRule
from coe.registry import AUTO, Registry
from coe.routing.conversation import newest_turn
from coe.routing.eligibility import exclusion

MAX_STEPS = 40
"""Messages or items before the newest turn that are compared."""
MAX_TEXT_CHARACTERS = 4000
"""Characters of a result that are compared."""
SAME_ERRORS, SAME_EDITS = 3, 2
_ERROR = re.compile(
    r"\b(?:error|exception|traceback|failed|failure|fatal|denied|not found|no such|cannot|invalid"
    r"|exit(?:ed with)? (?:code|status):? [1-9])",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+(?:\.\d+)?", re.IGNORECASE)
_EDIT = re.compile(r"edit|patch|write|replace|create|insert|apply", re.IGNORECASE)


def escalation(chat: Chat, expert: str, registry: Registry, rule: ExpertRule | None) -> str:
    """Return the expert that continues the session if it is stuck with this one: the next declared one that the rule
    permits; empty if there is none."""
    declared = registry.policy.escalate_stuck_to
    following = declared[declared.index(expert) + 1 :] if expert in declared else declared
    if rule is not None:
        following = tuple(name for name in following if not exclusion(rule, registry.arm(name)))
    return following[0] if following and chat.model == AUTO and is_stuck(chat) else ""


def is_stuck(chat: Chat) -> bool:
    """True if the newest turn has an error of a tool for the third time, or if the latest edit was made before."""
    begin, end = newest_turn(chat.messages)
    earlier, newest = (
        [_error(message.text) for message in messages if message.role in ("tool", "function")]
        for messages in (chat.messages[max(0, begin - MAX_STEPS) : begin], chat.messages[begin:end])
    )
    if not newest:
        return False
    if any(error and (earlier + newest).count(error) >= SAME_ERRORS for error in newest):
        return True
    edits = list(_edits(chat.fields))
    return bool(edits) and edits.count(edits[-1]) >= SAME_EDITS


def _error(text: str) -> str:
    """Return a result without its numbers if it is an error, else an empty text. Line numbers and times may differ."""
    text = text[:MAX_TEXT_CHARACTERS]
    return _NUMBER.sub("0", text) if _ERROR.search(text) else ""


def _edits(fields: Mapping[str, Any]) -> Iterator[bytes]:
    """Return the calls of tools that change something, in order: name and arguments."""
    items = fields.get("messages") or fields.get("input")
    for item in items[-MAX_STEPS:] if isinstance(items, list) else ():
        for call in _calls(item) if isinstance(item, dict) else ():
            edit = _serialized([name := call.get("name"), call.get("arguments", call.get("input"))])
            if edit and ((isinstance(name, str) and _EDIT.search(name)) or b"apply_patch" in edit):
                yield edit


def _serialized(call: list[Any]) -> bytes:
    """Return the call as JSON, empty if it is nested too deeply to compare."""
    try:
        return json_text.dumps(call)
    except RecursionError:
        return b""


def _calls(item: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Return the calls of one message or item, in any API: objects with `name` and `arguments` or `input`."""
    if item.get("type") in ("function_call", "custom_tool_call"):
        return (item,)
    found: list[Any] = []
    if isinstance(calls := item.get("tool_calls"), list):
        found += [call.get("function") or call.get("custom") for call in calls if isinstance(call, dict)]
    if isinstance(blocks := item.get("content"), list):
        found += [block for block in blocks if isinstance(block, dict) and block.get("type") == "tool_use"]
    return [call for call in found if isinstance(call, dict)]
