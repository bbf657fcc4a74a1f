"""`ForeignItems` sends a Responses conversation to a server that did not write all of it.

Clients send items back as a server wrote them, with ids and encrypted reasoning. After a change of the expert, the new
server rejects what it does not know (400 or 404). The request is then sent again without the items that this server has
not accepted before, then without all. What was rejected is remembered, so that the next steps of the conversation take
one request.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from coe.core import Call, Expert, Health, Reply
from coe.errors import ExpertError, ExpertRejected
from coe.experts.translation.expert import reported_types

_log = logging.getLogger("coe.experts")

Item = Mapping[str, Any]
MAX_REMEMBERED = 20_000
"""Ids and encrypted contents that are remembered for one server, about 100 bytes each."""
_REFERENCE = "item_reference"
_CLIENT_CALLS = frozenset(
    ("function_call", "custom_tool_call", "local_shell_call", "shell_call", "apply_patch_call", "computer_call")
)
"""Calls of tools that the client runs. All others ran on the server that wrote them."""
_SERVER_ITEMS = ("reasoning", "compaction", "mcp_")
"""Beginnings of the types of other items that only the server that wrote them can read."""


class ForeignItems:
    """Wraps an expert whose server supports the Responses API."""

    health = Health()

    def __init__(self, expert: Expert) -> None:
        self.name = expert.name
        self._expert = expert
        self._accepted: dict[int, bool] = {}
        """Maps the hash of an id to whether the server accepted it, least recently used first."""
        self._has_warned = False

    async def stream(self, call: Call) -> Reply:
        """Raises what the expert raises. If it rejects the request without foreign items too, that is its error."""
        items = call.fields.get("input") if call.api == "responses" else None
        marks = frozenset(_marks(items)) if isinstance(items, list) else frozenset[int]()
        rejected = frozenset(mark for mark in marks if self._accepted.get(mark) is False)
        unknown = frozenset(mark for mark in marks if not self._accepted.get(mark))
        *attempts, last = dict.fromkeys((rejected, unknown, marks))
        left_out = last
        for attempt in attempts:
            try:
                reply = await self._expert.stream(_without(call, attempt))
            except ExpertError as error:
                if not isinstance(error, ExpertRejected) and error.cause != "not_found":
                    raise
                error.drop_frames()
            else:
                left_out = attempt
                break
        else:
            reply = await self._expert.stream(_without(call, last))
        self._remember(marks, left_out)
        return reply

    async def aclose(self) -> None:
        await self._expert.aclose()

    def _remember(self, marks: frozenset[int], left_out: frozenset[int]) -> None:
        if left_out and not self._has_warned:
            self._has_warned = True
            message = "expert %s rejects items that another server wrote; they go without ids and reasoning from now on"
            _log.warning(message, self.name)
        for mark in marks:
            self._accepted.pop(mark, None)
            self._accepted[mark] = mark not in left_out
        while len(self._accepted) > MAX_REMEMBERED:
            del self._accepted[next(iter(self._accepted))]


def _without(call: Call, marks: frozenset[int]) -> Call:
    """Returns the call without these ids, and without the items that only the server that wrote them can read."""
    if not marks:
        return call
    kept, dropped = [], []
    for item in call.fields["input"]:
        if not isinstance(item, dict) or marks.isdisjoint(_marks([item])):
            kept.append(item)
        elif _is_readable(item):
            kept.append({name: value for name, value in item.items() if name != "id"})
        else:
            dropped.append(str(item.get("type")))
    if call.dropped is not None:
        call.dropped.update(reported_types(dropped))
    return replace(call, fields={**call.fields, "input": kept})


def _marks(items: list[Any]) -> Iterator[int]:
    """Yields the hash of each id and encrypted content. References stay: without its id, one means nothing."""
    for item in items:
        if isinstance(item, dict) and item.get("type") != _REFERENCE:
            for value in (item.get("id"), item.get("encrypted_content")):
                if isinstance(value, str) and value:
                    yield hash(value)


def _is_readable(item: Item) -> bool:
    """True for items that any server can read once they have no id."""
    kind = str(item.get("type", "message"))
    if "encrypted_content" in item or kind.startswith(_SERVER_ITEMS):
        return False
    return not kind.endswith("_call") or kind in _CLIENT_CALLS
