"""Stored answers of the Responses API, and the conversations that later requests continue from them.

An answer is stored with the input items of its request and the ids of the previous answers, not with the previous
conversation. So two lookups return the whole conversation: one for the answer, one for all previous answers. Each
output item is also stored under its own id, because requests may refer to items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from coe import json_text

Item = dict[str, Any]
MAX_ID_CHARACTERS = 200
MAX_TURNS = 1_000
"""Answers of one conversation."""
MAX_ENTRY_BYTES = 16 * 2**20
"""Largest size of a stored answer with its input and its items. Larger ones are not stored."""
REFERENCE = "item_reference"


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """An answer, the input items of its request as they were sent, and the ids of the answers before it, the oldest
    first."""

    response: Mapping[str, Any]
    input: Sequence[Item]
    previous: tuple[str, ...]

    @property
    def items(self) -> list[Item]:
        """The input and the output, as a later request would send them."""
        return [*self.input, *self.response["output"]]

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        """Returns the answer of a parsed entry."""
        return cls(found["response"], found["input"], tuple(found["previous"]))


def request_part(items: Sequence[Item], previous: Sequence[str]) -> bytes:
    """Return a request's part of an entry as JSON: its input items as they were sent, and the ids of the answers before
    it, the oldest first. Empty if it is too long or too deep."""
    try:
        part = json_text.dumps({"input": items, "previous": previous}) if len(previous) < MAX_TURNS else b""
    except RecursionError:
        return b""
    return part if len(part) <= MAX_ENTRY_BYTES else b""


def entries_of(response: Mapping[str, Any], part: bytes) -> dict[str, bytes]:
    """Return the values to store, by name, for an answer with an id and output, and the `request_part`. Empty if they
    are too long or too deep."""
    try:
        entry = b'{"response":%b,%b' % (json_text.dumps(response), part[1:])
        items = {item_name(item["id"]): json_text.dumps(item) for item in response["output"] if is_id(item.get("id"))}
    except RecursionError:
        return {}
    entries = {response_name(response["id"]): entry, **items}
    return entries if sum(map(len, entries.values())) <= MAX_ENTRY_BYTES else {}


@dataclass(slots=True, eq=False)
class StoredUse:
    """Data with which one request stores its answer."""

    owner: str
    part: bytes = b""
    """The `request_part`; empty if the answer is not stored."""
    previous: tuple[str, ...] = ()
    previous_id: str = ""
    """`previous_response_id` of the request. The expert gets the conversation instead; the answer has the id."""
    stateful: bool = False
    """True if the request depends on stored answers, or its own is stored. It then bypasses the answer cache."""


def is_storable(response: Mapping[str, Any]) -> bool:
    """True for an answer with an id and output."""
    return is_id(response.get("id")) and isinstance(response.get("output"), list)


def is_id(value: Any) -> bool:
    """True if a value can be the id of an answer or item."""
    return isinstance(value, str) and 0 < len(value) <= MAX_ID_CHARACTERS


def response_name(response_id: str) -> str:
    """Returns the name under which an answer is stored."""
    return f"r:{response_id}"


def item_name(item_id: str) -> str:
    """Returns the name under which an item is stored."""
    return f"i:{item_id}"


def items_of(fields: Mapping[str, Any]) -> list[Item]:
    """Returns the input of a valid request as items."""
    given = fields["input"]
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


def references(items: Iterable[Item]) -> Counter[str]:
    """Returns the number of references to each item, by its id."""
    return Counter(str(item.get("id")) for item in items if item.get("type") == REFERENCE)
