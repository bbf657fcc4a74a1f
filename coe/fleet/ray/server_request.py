"""What a node is asked to run, and what that takes of it; read by the node, so plain and without secrets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from coe.fleet import arguments
from coe.fleet.planning import sharing
from coe.fleet.specs import Flag
from coe.registry import ExpertSpec

_PARALLEL = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")
GB = 2**30


@dataclass(frozen=True, slots=True)
class Expert:
    """A LocalExpert that can travel."""

    name: str
    model: str
    runtime: str
    options: Mapping[str, Flag]
    adapter: str | None
    gpus: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Need:
    """What one server takes of a node. `memory` is in bytes, of RAM; 0 where nothing is said of it."""

    cpus: int
    gpus: int
    memory: int

    @property
    def resources(self) -> dict[str, float]:
        """By Ray's names, without what is not needed."""
        found = {"CPU": float(self.cpus), "GPU": float(self.gpus), "memory": float(self.memory)}
        return {name: amount for name, amount in found.items() if amount}


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """One server: the experts that share it, as `key` the first of them, and `name` among its replicas. The folders are
    the same on all nodes: `beside` is that of experts.yaml, `models` and `logs` are written by the node."""

    key: str
    name: str
    sharers: tuple[Expert, ...]
    need: Need
    beside: Path
    models: Path
    logs: Path


def orders(
    experts: Sequence[ExpertSpec], *, beside: Path, models: Path, logs: Path, gpus_there: bool
) -> Iterator[ServerRequest]:
    """One for each replica of each server; a server has as many as that of its experts which declares most."""
    for group in sharing(experts).values():
        declared = [one for one in experts if one in group]
        sharers = tuple(map(_travelling, declared))
        key = next((one.name for one in sharers if not one.adapter), sharers[0].name)
        count = max(one.replicas for one in declared)
        need = _need(declared, gpus_there=gpus_there)
        for number in range(1, count + 1):
            name = f"{key}-{number}" if count > 1 else key
            yield ServerRequest(key, name, sharers, need, beside=beside, models=models, logs=logs)


def _travelling(one: ExpertSpec) -> Expert:
    return Expert(one.name, one.model, one.runtime, one.options, one.adapter, one.gpus)


def _need(sharers: Sequence[ExpertSpec], *, gpus_there: bool) -> Need:
    """As many devices as are named, or as the model is spread over; one where nothing is said and the cluster has any.
    Without a device the declared memory is RAM."""
    first = sharers[0]
    options = arguments.named(first.options)
    gpus = len(first.gpus) or prod(size for name in _PARALLEL if isinstance(size := options.get(name), int))
    if not first.gpus and gpus == 1 and not gpus_there:
        gpus = 0
    if first.runtime != "vllm":
        gpus = 0
    memory = max((one.memory_gb or 0.0 for one in sharers), default=0.0)
    return Need(cpus=1, gpus=gpus, memory=0 if gpus else int(memory * GB))
