"""Plans the server processes of the declared experts; those with the same model, flags and devices share one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from coe.errors import FleetError
from coe.fleet import arguments, weights
from coe.fleet.arguments import find_command
from coe.fleet.specs import HOST, Flag, ListenAddress, LocalExpert, ServerSpec, free_port
from coe.fleet.validation import find_problems
from coe.fleet.vllm import command as vllm_command
from coe.settings import Endpoint

_log = logging.getLogger(__name__)
_WORKING_FOLDER = Path()
_LOCAL_RUNTIMES = frozenset({"transformers", "vllm"})

# Without continuous batching, requests queue, and each is sampled as requested. With it, three run at the speed of one,
# but all are sampled as the first request set (transformers 5.24), so experts that share a model could not have
# different temperatures. Measured with 135M parameters on two cores: 0.8 GB without, 1.2 GB with
# continuous-batching, cb-num-blocks: 64 and cb-max-batch-tokens: 256.
_TRANSFORMERS_FLAGS: Mapping[str, Flag] = {"device": "cpu"}

ServerConfig = tuple[str, str, tuple[str, ...], tuple[int, ...]]
"""Common settings of the experts on one server: runtime, model, flags, devices."""


def local_servers(
    experts: Sequence[LocalExpert],
    *,
    cache: Path,
    logs: Path,
    python: Path,
    report: Callable[[str], None] = _log.info,
    base_folder: Path = _WORKING_FOLDER,
    host: str = HOST,
) -> tuple[list[ServerSpec], dict[str, Endpoint]]:
    """Returns the servers to start and the endpoint of each local expert by name; other experts are left out.

    `python` is the interpreter beside which the servers' commands are installed. Folders are relative to `base_folder`.
    `host` is the local address to listen at. The first use of a packaged model converts it into `cache`, which takes
    about 20 s and blocks. Raises FleetError for what cannot run.
    """
    for index, _, what in find_problems(experts, base_folder=base_folder):
        raise FleetError(f"expert {experts[index].name!r}: {what}")
    specs: list[ServerSpec] = []
    endpoints: dict[str, Endpoint] = {}
    for group in group_by_config(experts).values():
        first = next((expert for expert in group if not expert.adapter), group[0])
        model = weights.resolve(first.model, cache=cache, report=report, base_folder=base_folder)
        port = free_port(avoid={spec.port for spec in specs}, host=host)
        address = ListenAddress(host, port, log=logs / f"{first.name}.log", bin_folder=python.parent)
        if first.runtime == "vllm":
            spec = vllm_command.server_spec(
                first, adapters=adapters_of(group, base_folder=base_folder), model=model, address=address
            )
        else:
            spec = _transformers_server(first, model, address)
        specs.append(replace(spec, apis=frozenset().union(*(expert.supported_apis for expert in group))))
        endpoints |= {expert.name: endpoint_of(expert, spec) for expert in group}
    return specs, {expert.name: endpoints[expert.name] for expert in experts if expert.name in endpoints}


def group_by_config(experts: Sequence[LocalExpert]) -> dict[ServerConfig, list[LocalExpert]]:
    """The local experts grouped by the server they share, in the order of the declaration."""
    groups: dict[ServerConfig, list[LocalExpert]] = {}
    for expert in experts:
        if expert.runtime in _LOCAL_RUNTIMES:
            groups.setdefault(server_config(expert), []).append(expert)
    return groups


def server_config(expert: LocalExpert) -> ServerConfig:
    """Experts with an equal config are served by one process, adapters included."""
    return expert.runtime, expert.model, arguments.to_argv(_flags(expert)), expert.gpus


def adapters_of(group: Sequence[LocalExpert], *, base_folder: Path = _WORKING_FOLDER) -> dict[str, Path]:
    """The LoRA folders of the experts on one server, by expert."""
    return {expert.name: (base_folder / Path(e).expanduser()).absolute() for expert in group if (e := expert.adapter)}


def endpoint_of(expert: LocalExpert, spec: ServerSpec) -> Endpoint:
    """The endpoint of an expert: an adapter is served under its own name, other experts under the server's."""
    assert spec.model is not None
    return Endpoint(base_url=f"{spec.root}/v1", model=expert.name if expert.adapter else spec.model)


def _flags(expert: LocalExpert) -> dict[str, Flag]:
    declared = arguments.normalized(expert.options)
    return {**_TRANSFORMERS_FLAGS, **declared} if expert.runtime == "transformers" else declared


def _transformers_server(expert: LocalExpert, model: Path | str, address: ListenAddress) -> ServerSpec:
    command = find_command("transformers", expert=expert.name, bin_folder=address.bin_folder, extra="coe[local]")
    listen = ("--host", address.host, "--port", str(address.port))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(max(1, cores - 1))  # with one thread per core, a busy machine falls to a tenth of the speed
    return ServerSpec(
        key=expert.name,
        argv=(str(command), "serve", str(model), *listen, *arguments.to_argv(_flags(expert))),
        host=address.host,
        port=address.port,
        env={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        | weights.offline_environment(model),
        model=str(model),
        log=address.log,
        ready_timeout=300.0,
    )
