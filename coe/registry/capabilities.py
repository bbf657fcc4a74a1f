"""Looks up what a model and its server can do, for experts with `capabilities: auto`.

The sources are the options of a vLLM server and litellm's table of models, which is read as a file: litellm itself is
not imported. Nothing is requested from a server, so that a declaration always means the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import orjson

from coe.core import Capability

AUTO = "auto"
TRIED: frozenset[Capability] = frozenset({"tools", "json_schema"})
"""Capabilities that an unknown model gets: such requests are tried, and its server's refusal reaches the client."""
_VLLM: frozenset[Capability] = frozenset({"json_schema", "json_object", "n", "logprobs", "echo"})
"""What every vLLM server can do."""
_FLAGS: Mapping[str, Capability] = {
    "supports_function_calling": "tools",
    "supports_response_schema": "json_schema",
    "supports_vision": "images",
    "supports_audio_input": "audio",
    "supports_pdf_input": "files",
}
_TABLE = "model_prices_and_context_window_backup.json"
CAPABILITIES_SCHEMA: Mapping[str, Any] = {
    "anyOf": [
        {"const": AUTO, "type": "string"},
        {"items": {"enum": list(get_args(Capability)), "type": "string"}, "type": "array", "uniqueItems": True},
    ]
}


def lookup(runtime: str, model: str, options: Mapping[str, Any]) -> frozenset[Capability]:
    """Return the capabilities of an expert's model and server, those to try if they are unknown."""
    if runtime == "vllm":
        calls_tools = options.get("enable-auto-tool-choice") and options.get("tool-call-parser")
        return _VLLM | {"tools"} if calls_tools else _VLLM
    if runtime == "transformers":
        return TRIED
    table = _models_of_litellm()
    found = next((table[name] for name in _names(model) if name in table), None)
    return TRIED if found is None else frozenset(_FLAGS[flag] for flag in _FLAGS if found.get(flag) is True)


def _names(model: str) -> Iterator[str]:
    """Yield the names under which the table may have a model: with its provider, then without."""
    yield model
    if "/" in model:
        yield model.partition("/")[2]


def _models_of_litellm() -> Mapping[str, Any]:
    """Return litellm's table; empty if litellm is not installed or has none."""
    package = find_spec("litellm")
    for folder in (package.submodule_search_locations or ()) if package else ():
        try:
            table = orjson.loads((Path(folder) / _TABLE).read_bytes())
        except (OSError, orjson.JSONDecodeError):
            continue
        if isinstance(table, dict):
            return {name: entry for name, entry in table.items() if isinstance(entry, dict)}
    return {}
