"""Plans the server processes of the declared local experts, and finds what is wrong with the declaration of these.

Experts with the same model, options and devices share a server. `ENGINES` are the engines of the local runtimes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from coe.errors import FleetError
from coe.fleet.engines.engine import ExpertProblems, InferenceEngine, ServerPlace
from coe.fleet.engines.llama_cpp import LlamaCpp
from coe.fleet.engines.ollama import Ollama
from coe.fleet.engines.sglang import SGLang
from coe.fleet.engines.transformers import Transformers
from coe.fleet.engines.vllm import Vllm
from coe.fleet.specs import HOST, ServerSpec, free_port
from coe.registry import ExpertSpec
from coe.registry.experts import ServerKey, normalized_options
from coe.registry.runtimes import LOCAL_RUNTIMES, RUNTIMES
from coe.settings import Endpoint

_log = logging.getLogger(__name__)
_WORKING_FOLDER = Path()

ENGINES: Mapping[str, InferenceEngine] = {
    "transformers": Transformers(),
    "vllm": Vllm(),
    "llama.cpp": LlamaCpp(),
    "sglang": SGLang(),
    "ollama": Ollama(),
}
assert ENGINES.keys() == LOCAL_RUNTIMES


def local_servers(
    experts: Sequence[ExpertSpec],
    *,
    cache: Path,
    logs: Path,
    python: Path,
    report: Callable[[str], None] = _log.info,
    base_folder: Path = _WORKING_FOLDER,
    host: str = HOST,
) -> tuple[list[ServerSpec], dict[str, Endpoint]]:
    """Returns the servers to start and the endpoint of each local expert by name; other experts are left out.

    Commands are looked for next to the interpreter `python`, and on PATH. Folders are relative to `base_folder`. `host`
    is the local address to listen at. The first use of a packaged model converts it into `cache`, which takes about
    20 s and blocks. Raises FleetError for what cannot run.
    """
    for index, _, what in find_problems(experts, base_folder=base_folder):
        raise FleetError(f"expert {experts[index].name!r}: {what}")
    specs: list[ServerSpec] = []
    endpoints: dict[str, Endpoint] = {}
    for group in group_by_server(experts).values():
        first = next((expert for expert in group if not expert.adapter), group[0])
        port = free_port(avoid={spec.port for spec in specs}, host=host)
        place = ServerPlace(host, port, logs / f"{first.name}.log", python.parent, base_folder, cache, report)
        adapters = {e.name: (base_folder / Path(e.adapter).expanduser()).absolute() for e in group if e.adapter}
        spec = ENGINES[first.runtime].server_spec(first, adapters, place)
        specs.append(replace(spec, apis=frozenset().union(*(expert.supported_apis for expert in group))))
        assert spec.model is not None
        for expert in group:  # an adapter is served under its own name, other experts under the server's
            endpoints[expert.name] = Endpoint(f"{spec.root}/v1", expert.name if expert.adapter else spec.model)
    return specs, {expert.name: endpoints[expert.name] for expert in experts if expert.name in endpoints}


def group_by_server(experts: Sequence[ExpertSpec]) -> dict[ServerKey, list[ExpertSpec]]:
    """The local experts grouped by the server they share, in the order of the declaration."""
    groups: dict[ServerKey, list[ExpertSpec]] = {}
    for expert in experts:
        if expert.runtime in ENGINES:
            groups.setdefault(expert.server_key, []).append(expert)
    return groups


def find_problems(experts: Sequence[ExpertSpec], *, base_folder: Path) -> Iterator[tuple[int, str, str]]:
    """Yields all problems visible in the declaration and on disk: the index of the expert, its key in experts.yaml, and
    what is wrong with the remedy. Folders are relative to `base_folder`.

    Whether a hub has the model, a flag exists, or the devices are present is reported by the server itself.
    """
    for index, expert in enumerate(experts):
        for key, what in _expert_problems(expert, base_folder):
            yield index, key, what


def _expert_problems(expert: ExpertSpec, base_folder: Path) -> ExpertProblems:
    runtime = RUNTIMES[expert.runtime]
    for key, feature, declared in (("adapter", "adapters", expert.adapter), ("gpus", "gpus", expert.gpus)):
        if declared and not getattr(runtime, feature):
            supported = ", ".join(name for name, one in RUNTIMES.items() if getattr(one, feature))
            yield key, f"`{key}` is for runtime {supported}; {expert.runtime} does not support it"
    engine = ENGINES.get(expert.runtime)
    if engine is None:
        return
    options = normalized_options(expert.options)
    if reserved := engine.reserved_flags & options.keys():
        hint = "; declare an expert with `adapter` for each" if reserved == {"lora-modules"} else ""
        yield "options", f"the options may not set {', '.join(sorted(reserved))}; CoE does{hint}"
    yield from engine.problems(expert, base_folder)
    if len(set(expert.gpus)) < len(expert.gpus):
        yield "gpus", f"a device is named twice: {list(expert.gpus)}"
    elif expert.gpus and (size := engine.devices(options)) > len(expert.gpus):
        yield "gpus", f"the options spread the model over {size} devices and `gpus` names {len(expert.gpus)}"
