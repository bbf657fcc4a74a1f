"""The tools of a Responses request as functions of Chat Completions, and their names back again.

Chat knows functions only. The functions of a namespace get the namespace in their name. Tools that OpenAI's servers run
themselves, such as web_search, and custom tools have no counterpart and are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coe.errors import InvalidRequest

MAX_NAME = 64
"""Characters of a function's name."""
MAX_CLIENT_NAME = 256
"""Characters of the name of a function or namespace in a request."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions for chat, the client's namespaces and names by theirs, and the types of the tools that were left
    out."""

    functions: tuple[dict[str, Any], ...]
    names: Mapping[str, tuple[str, str]]
    dropped: tuple[str, ...]


def read_tools(tools: Any) -> Tools:
    """Returns the tools of a Responses request. Raises InvalidRequest that names the field."""
    functions, names, dropped = [], {}, []
    for index, tool in enumerate(tools or ()):
        path = f"tools[{index}]"
        is_group = tool.get("type") == "namespace"
        namespace = _name_of(tool, path) if is_group else ""
        for one in (tool.get("tools") or ()) if is_group else (tool,):
            if (kind := one.get("type", "function")) != "function":
                dropped.append(str(kind))
                continue
            name = _name_of(one, path)
            in_chat = chat_name(name, namespace)
            names[in_chat] = (namespace, name)
            fields = ("description", "parameters", "strict")
            function = {key: one[key] for key in fields if one.get(key) is not None}
            functions.append({"type": "function", "function": {"name": in_chat, **function}})
    return Tools(tuple(functions), names, tuple(dropped))


def chat_name(name: str, namespace: str) -> str:
    """Returns the name of a function in chat: unique, and no longer than servers accept."""
    full = f"{namespace}__{name}" if namespace and not name.startswith(f"{namespace}__") else name
    if len(full) <= MAX_NAME or not namespace:
        return full
    return f"{full[: MAX_NAME - 9]}_{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def chat_choice(choice: Any, tools: Tools) -> Mapping[str, Any]:
    """Returns the fields `tools` and `tool_choice` of chat. Raises InvalidRequest for a forced tool that was left
    out."""
    if not tools.functions:
        return {}
    if isinstance(choice, dict):
        name = chat_name(str(choice.get("name") or ""), str(choice.get("namespace") or ""))
        if name not in tools.names:
            message = (
                f"tool_choice forces a tool that this model cannot call: {choice.get('name') or choice.get('type')}"
            )
            raise InvalidRequest(message, param="tool_choice", code="unsupported_api")
        choice = {"type": "function", "function": {"name": name}}
    return {"tools": list(tools.functions), **({} if choice is None else {"tool_choice": choice})}


def _name_of(tool: Mapping[str, Any], path: str) -> str:
    name = tool.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_CLIENT_NAME:  # each tool repeats its namespace's name
        message = f"{path} needs a name of at most {MAX_CLIENT_NAME} characters"
        raise InvalidRequest(message, param=f"{path}.name")
    return name
