"""Plans the server processes of the declared local experts, and finds what is wrong with the declaration of these.

Experts with the same model, options and devices share a server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from coe.errors import FleetError
from coe.fleet.engines.catalog import ENGINES
from coe.fleet.engines.engine import ModelFolders
from coe.fleet.specs import HOST, ListenAddress, ServerSpec, free_port
from coe.registry import ExpertSpec
from coe.registry.experts import ServerKey, normalized_options
from coe.registry.runtimes import RUNTIMES, with_feature
from coe.settings import Endpoint

_log = logging.getLogger(__name__)
_WORKING_FOLDER = Path()


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
    models = ModelFolders(base_folder=base_folder, cache=cache, report=report)
    specs: list[ServerSpec] = []
    endpoints: dict[str, Endpoint] = {}
    for group in group_by_server(experts).values():
        first = next((expert for expert in group if not expert.adapter), group[0])
        port = free_port(avoid={spec.port for spec in specs}, host=host)
        address = ListenAddress(host, port, log=logs / f"{first.name}.log", bin_folder=python.parent)
        adapters = adapters_of(group, base_folder=base_folder)
        spec = ENGINES[first.runtime].server_spec(first, adapters=adapters, models=models, address=address)
        specs.append(replace(spec, apis=frozenset().union(*(expert.supported_apis for expert in group))))
        endpoints |= {expert.name: endpoint_of(expert, spec) for expert in group}
    return specs, {expert.name: endpoints[expert.name] for expert in experts if expert.name in endpoints}


def group_by_server(experts: Sequence[ExpertSpec]) -> dict[ServerKey, list[ExpertSpec]]:
    """The local experts grouped by the server they share, in the order of the declaration."""
    groups: dict[ServerKey, list[ExpertSpec]] = {}
    for expert in experts:
        if expert.runtime in ENGINES:
            groups.setdefault(expert.server_key, []).append(expert)
    return groups


def adapters_of(group: Sequence[ExpertSpec], *, base_folder: Path = _WORKING_FOLDER) -> dict[str, Path]:
    """The LoRA folders of the experts on one server, by expert."""
    return {expert.name: (base_folder / Path(e).expanduser()).absolute() for expert in group if (e := expert.adapter)}


def endpoint_of(expert: ExpertSpec, spec: ServerSpec) -> Endpoint:
    """The endpoint of an expert: an adapter is served under its own name, other experts under the server's."""
    assert spec.model is not None
    return Endpoint(base_url=f"{spec.root}/v1", model=expert.name if expert.adapter else spec.model)


Problem = tuple[int, str, str]
"""The index of the expert, its key in experts.yaml, and what is wrong with the remedy."""


def find_problems(experts: Sequence[ExpertSpec], *, base_folder: Path) -> Iterator[Problem]:
    """Yields all problems visible in the declaration and on disk; folders are relative to `base_folder`.

    Whether a hub has the model, a flag exists, or the devices are present is reported by the server itself.
    """
    for index, expert in enumerate(experts):
        for key, what in _expert_problems(expert, base_folder):
            yield index, key, what
    yield from _split_model_problems(experts)


def _expert_problems(expert: ExpertSpec, base_folder: Path) -> Iterator[tuple[str, str]]:
    runtime = RUNTIMES[expert.runtime]
    for key, feature, declared in (("adapter", "adapters", expert.adapter), ("gpus", "gpus", expert.gpus)):
        if declared and not getattr(runtime, feature):
            yield key, f"`{key}` is for runtime {with_feature(feature)}; {expert.runtime} does not support it"
    engine = ENGINES.get(expert.runtime)
    if engine is None:
        return
    options = normalized_options(expert.options)
    if reserved := engine.reserved_flags & options.keys():
        normalized = ", ".join(sorted(reserved))
        hint = "; declare an expert with `adapter` for each" if reserved == {"lora-modules"} else ""
        yield "options", f"the options may not set {normalized}; CoE does{hint}"
    yield from engine.problems(expert, options, base_folder=base_folder)
    if runtime.gpus:
        yield from _device_problems(expert, engine.devices(options))


def _device_problems(expert: ExpertSpec, size: int) -> Iterator[tuple[str, str]]:
    if not expert.gpus:
        return
    if len(set(expert.gpus)) < len(expert.gpus):
        yield "gpus", f"a device is named twice: {list(expert.gpus)}"
    if size > len(expert.gpus):
        yield "gpus", f"the options spread the model over {size} devices and `gpus` names {len(expert.gpus)}"


def _split_model_problems(experts: Sequence[ExpertSpec]) -> Iterator[Problem]:
    """Yields adapters whose flags differ from those of their base, which would load the model a second time."""
    served = [(index, expert) for index, expert in enumerate(experts) if RUNTIMES[expert.runtime].adapters]
    for index, expert in served:
        if not expert.adapter:
            continue
        for _, other in served:
            if (other.runtime, other.model) == (expert.runtime, expert.model) and other.server_key != expert.server_key:
                yield (
                    index,
                    "options" if other.gpus == expert.gpus else "gpus",
                    f"shares the model of {other.name!r} but not its options and gpus, so that the model would be "
                    "loaded twice; write the same",
                )
                break
