"""Which server processes the declared experts need: experts of one model, flags and devices share one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from coe.errors import FleetError
from coe.fleet import arguments, weights
from coe.fleet.arguments import find_command
from coe.fleet.ports import HOST, free_port
from coe.fleet.specs import Flag, ListenAddress, LocalExpert, ServerSpec
from coe.fleet.validation import mistakes
from coe.fleet.vllm import command as vllm_command
from coe.settings import Endpoint

_log = logging.getLogger(__name__)
_HERE = Path()
_STARTED_HERE = frozenset({"transformers", "vllm"})

# Without continuous batching, requests queue one behind another, and each is sampled as it asks. With it three run at
# the speed of one, but every request is sampled as the first one asked (transformers 5.24), so that experts which share
# a model could not differ by temperature. Measured with 135M parameters on two cores: 0.8 GB without, 1.2 GB with
# continuous-batching, cb-num-blocks: 64 and cb-max-batch-tokens: 256.
_TRANSFORMERS_FLAGS: Mapping[str, Flag] = {"device": "cpu"}

Shared = tuple[str, str, tuple[str, ...], tuple[int, ...]]
"""What experts on one server have in common: runtime, model, flags, devices."""


def local_servers(
    experts: Sequence[LocalExpert],
    *,
    cache: Path,
    logs: Path,
    python: Path,
    say: Callable[[str], None] = _log.info,
    beside: Path = _HERE,
    host: str = HOST,
) -> tuple[list[ServerSpec], dict[str, Endpoint]]:
    """The servers to start and, by expert name, where each local expert will be served; other experts are left out.

    `python` is the interpreter beside which the servers' commands are installed; folders are relative to `beside`;
    `host` is the address of this machine at which they listen. The first use of a packaged model converts it into
    `cache`, which takes about 20 s and blocks. Raises FleetError for what cannot be run.
    """
    for index, _, what in mistakes(experts, beside=beside):
        raise FleetError(f"expert {experts[index].name!r}: {what}")
    specs: list[ServerSpec] = []
    endpoints: dict[str, Endpoint] = {}
    for sharers in sharing(experts).values():
        first = next((expert for expert in sharers if not expert.adapter), sharers[0])
        model = weights.resolve(first.model, cache=cache, say=say, beside=beside)
        port = free_port(avoid={spec.port for spec in specs}, host=host)
        place = ListenAddress(host, port, log=logs / f"{first.name}.log", bin_folder=python.parent)
        if first.runtime == "vllm":
            spec = vllm_command.plan(first, adapters=adapters_of(sharers, beside=beside), model=model, place=place)
        else:
            spec = _transformers(first, model, place)
        specs.append(spec)
        endpoints |= {expert.name: endpoint_of(expert, spec) for expert in sharers}
    return specs, {expert.name: endpoints[expert.name] for expert in experts if expert.name in endpoints}


def sharing(experts: Sequence[LocalExpert]) -> dict[Shared, list[LocalExpert]]:
    """The experts to be started here, by the server they share; in the order of the declaration."""
    groups: dict[Shared, list[LocalExpert]] = {}
    for expert in experts:
        if expert.runtime in _STARTED_HERE:
            groups.setdefault(shared_by(expert), []).append(expert)
    return groups


def shared_by(expert: LocalExpert) -> Shared:
    """Experts for which this is the same are served by one process, adapters and all."""
    return expert.runtime, expert.model, arguments.words(_options(expert)), expert.gpus


def adapters_of(sharers: Sequence[LocalExpert], *, beside: Path = _HERE) -> dict[str, Path]:
    """The LoRA folders of experts on one server, by expert."""
    return {expert.name: (beside / Path(e).expanduser()).absolute() for expert in sharers if (e := expert.adapter)}


def endpoint_of(expert: LocalExpert, spec: ServerSpec) -> Endpoint:
    """Where an expert is served by its server: an adapter under its own name, others under the server's."""
    assert spec.model is not None
    return Endpoint(base_url=f"{spec.root}/v1", model=expert.name if expert.adapter else spec.model)


def _options(expert: LocalExpert) -> dict[str, Flag]:
    given = arguments.named(expert.options)
    return {**_TRANSFORMERS_FLAGS, **given} if expert.runtime == "transformers" else given


def _transformers(expert: LocalExpert, model: Path | str, place: ListenAddress) -> ServerSpec:
    command = find_command("transformers", expert=expert.name, bin_folder=place.bin_folder, extra="coe[local]")
    address = ("--host", place.host, "--port", str(place.port))
    threads = str(max(1, _cores() - 1))  # as many model threads as busy cores fall to a tenth of the speed
    return ServerSpec(
        key=expert.name,
        argv=(str(command), "serve", str(model), *address, *arguments.words(_options(expert))),
        host=place.host,
        port=place.port,
        env={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        | weights.offline(model),
        model=str(model),
        log=place.log,
        ready_timeout=300.0,
    )


def _cores() -> int:
    """The cores this process may use; the machine may have more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
