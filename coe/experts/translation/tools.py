"""The tools of a Responses request as functions of Chat Completions, and their names back again.

Chat knows functions only. A custom tool becomes a function with one text `input`; the functions of a namespace get the
namespace in their name. Tools that OpenAI's servers run themselves, such as web_search, have no counterpart and are
left out.
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
INPUT = "input"
"""The argument of a function that stands for a custom tool."""
_INPUT_SCHEMA = {"type": "object", "properties": {INPUT: {"type": "string"}}, "required": [INPUT]}


@dataclass(frozen=True, slots=True)
class ToolName:
    """The client's name of a function."""

    name: str
    namespace: str = ""
    custom: bool = False


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions for chat, the client's names by theirs, and the types of the tools that were left out."""

    functions: tuple[dict[str, Any], ...]
    names: Mapping[str, ToolName]
    dropped: tuple[str, ...]


def read_tools(tools: Any) -> Tools:
    """Returns the tools of a Responses request. Raises InvalidRequest that names the field."""
    if tools is None:
        tools = []
    if not isinstance(tools, list):
        raise InvalidRequest("tools must be a list", param="tools")
    functions, names, dropped = [], {}, []
    for index, tool in enumerate(tools):
        path = f"tools[{index}]"
        if not isinstance(tool, dict) or not isinstance(kind := tool.get("type", "function"), str):
            raise InvalidRequest(f"{path} must be an object with a type", param=path)
        grouped = tool.get("tools") if kind == "namespace" else [tool]
        namespace = _name_of(tool, path) if kind == "namespace" else ""
        for one in grouped if isinstance(grouped, list) else ():
            kind = one.get("type", "function") if isinstance(one, dict) else ""
            if kind not in ("function", "custom"):
                dropped.append(str(kind))
                continue
            name = ToolName(_name_of(one, path), namespace, kind == "custom")
            in_chat = chat_name(name.name, namespace)
            names[in_chat] = name
            functions.append(_function(one, in_chat, custom=name.custom))
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


def _function(tool: Mapping[str, Any], name: str, *, custom: bool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": name}
    if description := _description(tool):
        function["description"] = description
    if custom:
        function["parameters"] = _INPUT_SCHEMA
    else:
        function |= {key: tool[key] for key in ("parameters", "strict") if tool.get(key) is not None}
    return {"type": "function", "function": function}


def _description(tool: Mapping[str, Any]) -> str:
    """The description, with the grammar of a custom tool: chat has no field for it."""
    text, form = tool.get("description"), tool.get("format")
    text = text if isinstance(text, str) else ""
    if isinstance(form, dict) and form.get("type") == "grammar":
        text += f"\n\n{INPUT} must match this {form.get('syntax')} grammar:\n{form.get('definition')}"
    return text.strip()


def _name_of(tool: Mapping[str, Any], path: str) -> str:
    name = tool.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_CLIENT_NAME:  # each tool repeats its namespace's name
        message = f"{path} needs a name of at most {MAX_CLIENT_NAME} characters"
        raise InvalidRequest(message, param=f"{path}.name")
    return name
