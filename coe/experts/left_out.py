"""Leaves fields and items out of a request so that a server accepts it, and reports them.

A server may reject fields of which the client can do without (`Call.optional`), and items of a Responses conversation
that another server wrote. The request is then sent again without them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from coe.core import Call
from coe.errors import ExpertError, ExpertRejected

NEWER_NAMES: Mapping[str, str] = {"max_tokens": "max_completion_tokens"}
"""Fields that are renamed. OpenAI's newer models reject the older name; many other servers ignore the newer one."""
MAX_REPORTED = 10
"""Types that `reported_types` names."""
_TYPE = re.compile(r"[a-z0-9_]{1,40}")
_CLIENT_CALLS = frozenset(
    ("function_call", "custom_tool_call", "local_shell_call", "shell_call", "apply_patch_call", "computer_call")
)
"""Calls of tools that the client runs. All others ran on the server that wrote them."""
_SERVER_ITEMS = ("reasoning", "compaction", "mcp_")
"""Beginnings of the types of other items that only the server that wrote them can read."""


def rejected_field(call: Call, error: ExpertError) -> str:
    """Returns the optional field that a server rejects, empty if it rejects something else. The `param` of an error
    decides where there is one."""
    if not isinstance(error, ExpertRejected):
        return ""
    text, place = str(error), error.param or str(error)
    return next((name for name in sorted(call.optional) if name in place and NEWER_NAMES.get(name, "") in text), "")


def without_field(call: Call, name: str) -> Call:
    """Returns the call without an optional field, or with its newer name."""
    fields = {key: value for key, value in call.fields.items() if key != name}
    if name in NEWER_NAMES:
        fields[NEWER_NAMES[name]] = call.fields[name]
    return replace(call, fields=fields, optional=call.optional - {name})


def without_foreign_items(call: Call, error: ExpertError) -> Call:
    """Returns a rejected call without the ids in its conversation, and without the items that only the server that
    wrote them can read; the same call if nothing changes.

    Clients send items back as a server wrote them. After a change of the expert, the new server rejects what it does
    not know (400 or 404).
    """
    items = call.fields.get("input") if call.api == "responses" else None
    if not isinstance(items, list) or not (isinstance(error, ExpertRejected) or error.cause == "not_found"):
        return call
    kept, dropped = [], []
    for item in items:
        if not isinstance(item, dict) or item.get("type") == "item_reference":  # nothing without its id
            kept.append(item)
        elif _is_readable(item):
            kept.append({name: value for name, value in item.items() if name != "id"})
        else:
            dropped.append(str(item.get("type")))
    if kept == items:
        return call
    if call.dropped is not None:
        call.dropped.update(reported_types(dropped))
    return replace(call, fields={**call.fields, "input": kept})


def reported_types(kinds: Iterable[str]) -> tuple[str, ...]:
    """Returns types as headers and records hold them, each once and at most MAX_REPORTED. A type that is not a word is
    `other`, since it could hold anything."""
    words = (kind if _TYPE.fullmatch(kind) else "other" for kind in kinds)
    return tuple(dict.fromkeys(words))[:MAX_REPORTED]


def _is_readable(item: Mapping[str, Any]) -> bool:
    """True for items that any server can read once they have no id."""
    kind = str(item.get("type", "message"))
    is_sealed = "encrypted_content" in item or kind.startswith(_SERVER_ITEMS)
    return not is_sealed and (not kind.endswith("_call") or kind in _CLIENT_CALLS)
