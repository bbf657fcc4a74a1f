"""The runtimes of experts.yaml, and what each offers: declarations are checked and requests routed by this table.

`coe.fleet.engines` runs the servers of the local ones.

Looks up what a model and its server can do: for experts with `capabilities: auto`, and for `coe init`.

The sources are the options of a vLLM server and litellm's table of models, which is read as a file: litellm itself is
not imported. Nothing is requested from a server, so that a declaration always means the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import orjson

from coe.core import Api, Capability

RuntimeName = Literal["transformers", "vllm", "llama.cpp", "sglang", "ollama", "external", "litellm"]
Capabilities = frozenset[Capability]
TRIED: Capabilities = frozenset({"tools", "json_schema"})
"""Capabilities that an unknown model gets: such requests are tried, and its server's refusal reaches the client."""
_GUIDED: Capabilities = frozenset({"json_schema", "json_object", "n", "logprobs", "echo"})
"""Capabilities of every vLLM and SGLang server."""
_LLAMA_CPP: Capabilities = TRIED | {"json_object", "logprobs"}
"""Capabilities of every llama.cpp server: templates with tools and grammars are on by default."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """Features of the servers of one runtime.

    - `apis`: supported APIs, unless an expert declares others.
    - `local`: CoE starts its servers.
    - `capabilities`: of its servers, None if they depend on the model alone; `option_capabilities` need an option.
    - `adapters`: its servers load LoRA adapters.
    - `gpus`: its servers can be confined to some GPUs.
    - `sleep_levels`: levels of sleep; without one, residency stops its servers.
    - `sleep_options`: each level needs other options of the server.
    """

    apis: frozenset[Api] = frozenset({"chat"})
    local: bool = False
    capabilities: Capabilities | None = None
    option_capabilities: Mapping[str, Capability] = field(default_factory=dict)
    adapters: bool = False
    gpus: bool = False
    sleep_levels: frozenset[int] = frozenset()
    sleep_options: bool = False


RUNTIMES: Mapping[str, Runtime] = {
    "transformers": Runtime(
        apis=frozenset({"chat", "completions"}),  # its Responses API always streams (5.24)
        local=True,
        capabilities=TRIED,
    ),
    "vllm": Runtime(
        apis=frozenset({"chat", "completions", "responses", "messages"}),
        local=True,
        capabilities=_GUIDED,
        option_capabilities={"enable-auto-tool-choice": "tools"},
        adapters=True,
        gpus=True,
        sleep_levels=frozenset({1, 2}),
    ),
    "llama.cpp": Runtime(
        apis=frozenset({"chat", "completions", "responses", "messages"}),
        local=True,
        capabilities=_LLAMA_CPP,
        option_capabilities={"mmproj": "images"},  # the file of a projector
        gpus=True,
    ),
    "sglang": Runtime(
        apis=frozenset({"chat", "completions"}),
        local=True,
        capabilities=_GUIDED,
        option_capabilities={"tool-call-parser": "tools"},
        gpus=True,
        sleep_levels=frozenset({1, 2}),
        sleep_options=True,
    ),
    "ollama": Runtime(
        apis=frozenset({"chat", "completions"}),
        local=True,
        capabilities=TRIED | {"json_object"},
        gpus=True,
        sleep_levels=frozenset({2}),  # the weights return from disk
    ),
    "external": Runtime(),
    "litellm": Runtime(),
}
LOCAL_RUNTIMES = frozenset(name for name, runtime in RUNTIMES.items() if runtime.local)
"""Runtimes whose servers CoE starts on its own machines."""
assert RUNTIMES.keys() == set(get_args(RuntimeName))


AUTO = "auto"
_FLAGS: Mapping[str, Capability] = {
    "supports_function_calling": "tools",
    "supports_response_schema": "json_schema",
    "supports_vision": "images",
    "supports_audio_input": "audio",
    "supports_pdf_input": "files",
}
_TABLE = "model_prices_and_context_window_backup.json"


class ModelTable:
    """litellm's table of models, read when it is first needed. One serves all experts of a declaration."""

    @cached_property
    def entries(self) -> Mapping[str, Any]:
        """Entries by model name; empty if litellm is not installed, or has none."""
        package = find_spec("litellm")
        for folder in (package.submodule_search_locations or ()) if package else ():
            with suppress(OSError, orjson.JSONDecodeError):
                table = orjson.loads((Path(folder) / _TABLE).read_bytes())
                return {name: entry for name, entry in table.items() if isinstance(entry, dict)}
        return {}


def lookup(runtime: str, model: str, options: Mapping[str, Any], table: ModelTable) -> frozenset[Capability]:
    """Return the capabilities of an expert's model and server; if they are unknown, TRIED. The table may have a model
    with its provider or without."""
    known, by_option = RUNTIMES[runtime].capabilities, RUNTIMES[runtime].option_capabilities
    if known is not None:
        return known | {capability for option, capability in by_option.items() if options.get(option)}
    found = known_model(table.entries, (model, model.partition("/")[2]))
    return TRIED if found is None else found.capabilities


@dataclass(frozen=True, slots=True)
class KnownModel:
    """The entry of a model in litellm's table, without what it leaves open.

    `mode` is the kind of API, such as chat or embedding; empty if unknown. `context_length` counts input tokens. Prices
    are in US dollars per million tokens.
    """

    mode: str
    capabilities: frozenset[Capability]
    context_length: int | None
    input_price: float | None
    output_price: float | None
    cached_input_price: float | None


def known_model(table: Mapping[str, Any], names: Iterable[str]) -> KnownModel | None:
    """Return the entry of the first name that the table has."""
    entry = next((table[name] for name in names if name in table), None)
    if entry is None:
        return None
    context = entry.get("max_input_tokens")
    return KnownModel(
        mode=str(entry.get("mode") or ""),
        capabilities=frozenset(_FLAGS[flag] for flag in _FLAGS if entry.get(flag) is True),
        context_length=context if isinstance(context, int) and context > 0 else None,
        input_price=_per_million(entry.get("input_cost_per_token")),
        output_price=_per_million(entry.get("output_cost_per_token")),
        cached_input_price=_per_million(entry.get("cache_read_input_token_cost")),
    )


def _per_million(price: Any) -> float | None:
    return price * 1e6 if isinstance(price, int | float) and price >= 0 else None
