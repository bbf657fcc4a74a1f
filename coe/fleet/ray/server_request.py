"""What a node is requested to run, and the resources that it needs. It travels to the node, so it holds no secret."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coe.fleet import arguments
from coe.fleet.planning import group_by_config
from coe.fleet.specs import Flag
from coe.registry import ExpertSpec

GB = 2**30


@dataclass(frozen=True, slots=True)
class PlainExpert:
    """A LocalExpert that can be pickled and has no key."""

    name: str
    model: str
    runtime: str
    options: Mapping[str, Flag]
    adapter: str | None
    gpus: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ServerResources:
    """The resources of one server. `memory` is RAM in bytes, 0 if not declared."""

    cpus: int
    gpus: int
    memory: int

    def for_ray(self) -> dict[str, float]:
        """The non-zero amounts by Ray's names."""
        amounts = {"CPU": float(self.cpus), "GPU": float(self.gpus), "memory": float(self.memory)}
        return {name: amount for name, amount in amounts.items() if amount}


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """One server.

    `experts` share it, `key` is the first of them, `name` distinguishes it from its replicas. All nodes have the same
    folders: `base_folder` is that of experts.yaml; the node writes into `models` and `logs`.
    """

    key: str
    name: str
    experts: tuple[PlainExpert, ...]
    resources: ServerResources
    base_folder: Path
    models: Path
    logs: Path


def server_requests(
    experts: Sequence[ExpertSpec], *, base_folder: Path, models: Path, logs: Path, cluster_has_gpus: bool
) -> Iterator[ServerRequest]:
    """Yields one request for each replica of each server. A server has as many replicas as the expert with most."""
    for group in group_by_config(experts).values():
        declared = [expert for expert in experts if expert in group]
        plain = tuple(
            PlainExpert(one.name, one.model, one.runtime, one.options, one.adapter, one.gpus) for one in declared
        )
        key = next((expert.name for expert in plain if not expert.adapter), plain[0].name)
        replicas = max(expert.replicas for expert in declared)
        resources = _resources(declared, cluster_has_gpus=cluster_has_gpus)
        for number in range(1, replicas + 1):
            name = f"{key}-{number}" if replicas > 1 else key
            yield ServerRequest(key, name, plain, resources, base_folder=base_folder, models=models, logs=logs)


def _resources(experts: Sequence[ExpertSpec], *, cluster_has_gpus: bool) -> ServerResources:
    """As many GPUs as are declared, or as the model is spread over; by default one if the cluster has any. Without a
    GPU, the declared memory is RAM."""
    first = experts[0]
    gpus = len(first.gpus) or arguments.parallel_size(arguments.normalized(first.options))
    if not first.gpus and gpus == 1 and not cluster_has_gpus:
        gpus = 0
    if first.runtime != "vllm":
        gpus = 0
    memory = max((expert.memory_gb or 0.0 for expert in experts), default=0.0)
    return ServerResources(cpus=1, gpus=gpus, memory=0 if gpus else int(memory * GB))
