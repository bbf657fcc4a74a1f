"""`transformers serve`, for small models on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from coe.errors import pip_install
from coe.fleet import weights
from coe.fleet.engines.engine import InferenceEngine, ServerPlace, spare_threads, to_argv
from coe.fleet.specs import ServerSpec
from coe.registry import ExpertSpec
from coe.registry.sections import Flag

# Without continuous batching, requests queue, and each is sampled as requested. With it, three run at the speed of one,
# but all are sampled as the first request set (transformers 5.24), so experts that share a model could not have
# different temperatures. Measured with 135M parameters in bfloat16 on two cores: 0.8 GB without, 1.2 GB with
# continuous-batching, cb-num-blocks: 64 and cb-max-batch-tokens: 256.
_DEFAULTS: Mapping[str, Flag] = {"device": "cpu"}
_BFLOAT16_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16"})


def _emulates_bfloat16(flags: Mapping[str, Flag]) -> bool:
    """Return whether the server runs on an x86 processor without instructions for bfloat16. There bfloat16, the type of
    most weights, takes two to four times as long as float32 (docs/experiments/residency.md)."""
    found = cpu_flags()
    return flags["device"] == "cpu" and bool(found) and not found & _BFLOAT16_INSTRUCTIONS


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets of an x86 processor, as /proc/cpuinfo names them; none on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


class Transformers(InferenceEngine):
    """`transformers serve`. Its servers can only be stopped, not put to sleep."""

    command = "transformers"
    install = f"`{pip_install('local')}`"
    reserved_flags = frozenset({"host", "port", "served-model-name", "model", "lora-modules"})
    ready_timeout = 300.0

    def flags(self, expert: ExpertSpec) -> dict[str, Flag]:
        flags = {**_DEFAULTS, **super().flags(expert)}
        return flags if "dtype" in flags or not _emulates_bfloat16(flags) else {**flags, "dtype": "float32"}

    def server_spec(self, first: ExpertSpec, adapters: Mapping[str, Path], place: ServerPlace) -> ServerSpec:
        model, threads = place.resolve(first.model), str(spare_threads())
        argv = (self.locate(first, place), "serve", str(model), *place.flags, *to_argv(self.flags(first)))
        env = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        return self.spec(first, place, argv=argv, env=env | weights.offline_environment(model), model=str(model))
