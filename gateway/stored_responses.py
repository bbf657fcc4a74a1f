"""Stored answers of the Responses API: their form, and the ids and references that clients send.

An answer is stored with the input items of its request and the ids of the previous answers, not with the previous
conversation. So two lookups return the whole conversation: one for the answer, one for all previous answers. Each
output item is also stored under its own id, because requests may refer to items. The step of a request is in
`gateway.request.stored_step`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coe import json_text
from coe.core import ExpertRule

Item = dict[str, Any]
MAX_ID_CHARACTERS = 200
MAX_TURNS = 1_000
"""Answers of one conversation."""
MAX_ENTRY_BYTES = 16 * 2**20
"""Largest size of a stored answer with its input and its items. Larger ones are not stored."""
REFERENCE = "item_reference"


@dataclass(slots=True, eq=False)
class StoredUse:
    """Data with which one request stores its answer for `tenant`."""

    tenant: str
    rule: ExpertRule | None
    part: bytes = b""
    """The `request_part`; empty if the answer is not stored."""
    previous: tuple[str, ...] = ()
    previous_id: str = ""
    """`previous_response_id` of the request. The expert gets the conversation instead; the answer has the id."""


def restriction(rule: ExpertRule | None) -> dict[str, Any]:
    """Return who may continue an answer, as its entries have it: the API key with a list of experts, or None for all of
    the tenant, and whether only requests for local experts may."""
    if rule is None:
        return {"key": None, "only_local": False}
    return {"key": None if rule.experts is None else rule.key, "only_local": rule.only_local}


def is_permitted(entry: Mapping[str, Any], rule: ExpertRule | None, *, reads: bool = False) -> bool:
    """Return whether a request under this rule may continue an entry of its tenant. A request without the restrictions
    of the entry's could send it to any expert. With `reads`, whether its client may read and delete it."""
    own = restriction(rule)
    return entry["key"] in (None, own["key"]) and (reads or own["only_local"] or not entry["only_local"])


def request_part(items: Sequence[Item], previous: Sequence[str], rule: ExpertRule | None) -> bytes:
    """Return a request's part of an entry as JSON: its restriction, its input items as they were sent, and the ids of
    the answers before it, the oldest first. Empty if it is too long or too deep."""
    try:
        part = {**restriction(rule), "input": items, "previous": previous}
        text = json_text.dumps(part) if len(previous) < MAX_TURNS else b""
    except RecursionError:
        return b""
    return text if len(text) <= MAX_ENTRY_BYTES else b""


def entries_of(response: Mapping[str, Any], use: StoredUse) -> dict[str, bytes]:
    """Return the values to store, by name, for an answer with an id and output. Empty if they are too long or too
    deep."""
    limits = restriction(use.rule)
    try:
        entries = {response_name(response["id"]): b'{"response":%b,%b' % (json_text.dumps(response), use.part[1:])}
        for item in response["output"]:
            if is_id(item.get("id")):
                entries[item_name(item["id"])] = json_text.dumps({**limits, "item": item})
    except RecursionError:
        return {}
    return entries if sum(map(len, entries.values())) <= MAX_ENTRY_BYTES else {}


def is_storable(response: Mapping[str, Any]) -> bool:
    """True for an answer with an id and output."""
    output = response.get("output")
    return is_id(response.get("id")) and isinstance(output, list) and all(isinstance(item, dict) for item in output)


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
