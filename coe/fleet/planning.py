"""Plans the server processes of the declared experts; those with the same model, options and devices share one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from coe.errors import FleetError
from coe.fleet import arguments
from coe.fleet.engines.catalog import ENGINES
from coe.fleet.engines.engine import ModelFolders
from coe.fleet.specs import HOST, ListenAddress, LocalExpert, ServerSpec, free_port
from coe.fleet.validation import find_problems
from coe.registry.experts import ServerKey
from coe.settings import Endpoint

_log = logging.getLogger(__name__)
_WORKING_FOLDER = Path()


def local_servers(
    experts: Sequence[LocalExpert],
    *,
    cache: Path,
    logs: Path,
    python: Path,
    report: Callable[[str], None] = _log.info,
    engines: Path | None = None,
    base_folder: Path = _WORKING_FOLDER,
    host: str = HOST,
) -> tuple[list[ServerSpec], dict[str, Endpoint]]:
    """Returns the servers to start and the endpoint of each local expert by name; other experts are left out.

    Commands are looked for in `engines`, where `coe engine install` puts them, next to the interpreter `python`, and on
    PATH. Folders are relative to `base_folder`.
    `host` is the local address to listen at. The first use of a packaged model converts it into `cache`, which takes
    about 20 s and blocks. Raises FleetError for what cannot run.
    """
    for index, _, what in find_problems(experts, base_folder=base_folder):
        raise FleetError(f"expert {experts[index].name!r}: {what}")
    models = ModelFolders(base_folder=base_folder, cache=cache, report=report)
    specs: list[ServerSpec] = []
    endpoints: dict[str, Endpoint] = {}
    for group in group_by_server(experts).values():
        first = next((expert for expert in group if not expert.adapter), group[0])
        port = free_port(avoid={spec.port for spec in specs}, host=host)
        folders = arguments.bin_folders(engines, first.runtime, python)
        address = ListenAddress(host, port, log=logs / f"{first.name}.log", bin_folders=folders)
        adapters = adapters_of(group, base_folder=base_folder)
        spec = ENGINES[first.runtime].server_spec(first, adapters=adapters, models=models, address=address)
        specs.append(replace(spec, apis=frozenset().union(*(expert.supported_apis for expert in group))))
        endpoints |= {expert.name: endpoint_of(expert, spec) for expert in group}
    return specs, {expert.name: endpoints[expert.name] for expert in experts if expert.name in endpoints}


def group_by_server(experts: Sequence[LocalExpert]) -> dict[ServerKey, list[LocalExpert]]:
    """The local experts grouped by the server they share, in the order of the declaration."""
    groups: dict[ServerKey, list[LocalExpert]] = {}
    for expert in experts:
        if expert.runtime in ENGINES:
            groups.setdefault(expert.server_key, []).append(expert)
    return groups


def adapters_of(group: Sequence[LocalExpert], *, base_folder: Path = _WORKING_FOLDER) -> dict[str, Path]:
    """The LoRA folders of the experts on one server, by expert."""
    return {expert.name: (base_folder / Path(e).expanduser()).absolute() for expert in group if (e := expert.adapter)}


def endpoint_of(expert: LocalExpert, spec: ServerSpec) -> Endpoint:
    """The endpoint of an expert: an adapter is served under its own name, other experts under the server's."""
    assert spec.model is not None
    return Endpoint(base_url=f"{spec.root}/v1", model=expert.name if expert.adapter else spec.model)
