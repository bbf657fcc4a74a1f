"""The runtimes of experts.yaml, and what each offers: declarations are checked and requests routed by this table.

`coe.fleet.engines` runs the servers of the local ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

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
