"""The inference engine of each local runtime."""

from __future__ import annotations

from collections.abc import Mapping

from coe.fleet.engines.engine import InferenceEngine
from coe.fleet.engines.llama_cpp import LlamaCpp
from coe.fleet.engines.ollama import Ollama
from coe.fleet.engines.sglang import SGLang
from coe.fleet.engines.transformers import Transformers
from coe.fleet.engines.vllm import Vllm
from coe.registry.runtimes import LOCAL_RUNTIMES

ENGINES: Mapping[str, InferenceEngine] = {
    "transformers": Transformers(),
    "vllm": Vllm(),
    "llama.cpp": LlamaCpp(),
    "sglang": SGLang(),
    "ollama": Ollama(),
}
assert ENGINES.keys() == LOCAL_RUNTIMES
