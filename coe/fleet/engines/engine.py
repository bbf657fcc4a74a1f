"""The Protocol of an inference engine: how CoE plans the servers of one runtime, and how their weights are found.

An engine builds a `ServerSpec`: command line, environment, pages to probe, load times, and the client that puts the
server to sleep. Processes, probes, restarts, logs and residency are the same for all engines and know specs only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from coe.errors import FleetError
from coe.fleet import arguments, weights
from coe.fleet.specs import Flag, ListenAddress, LocalExpert, ServerSpec


@dataclass(frozen=True, slots=True)
class ModelFolders:
    """Folders of models: those of experts.yaml are relative to `base_folder`, converted weights go into `cache`.
    `report` receives a line for each conversion."""

    base_folder: Path
    cache: Path
    report: Callable[[str], None]


class InferenceEngine(Protocol):
    """Plans the servers of one runtime. `command` is the program, `install` the way to get it. `reserved_flags`
    are options that CoE sets from the rest of the declaration. `start_seconds` is the expected time from stopped to
    awake before any measurement: (constant seconds, additional seconds per GB of weights)."""

    @property
    def command(self) -> str: ...

    @property
    def install(self) -> str: ...

    @property
    def reserved_flags(self) -> frozenset[str]: ...

    @property
    def start_seconds(self) -> tuple[float, float]: ...

    def flags(self, expert: LocalExpert) -> dict[str, Flag]:
        """The options of the expert's server, defaults included."""

    def devices(self, options: Mapping[str, Flag]) -> int:
        """The number of GPUs that the options spread a model over; 1 by default."""

    def problems(
        self, expert: LocalExpert, options: Mapping[str, Flag], *, base_folder: Path
    ) -> Iterator[tuple[str, str]]:
        """Yields (key of the expert in experts.yaml, problem with its remedy), as far as the declaration and the disk
        show it."""

    def server_spec(
        self, first: LocalExpert, *, adapters: Mapping[str, Path], models: ModelFolders, address: ListenAddress
    ) -> ServerSpec:
        """The server of `first` and of all adapters on it. Raises FleetError, such as for a missing command."""


def weight_problems(model: str, *, base_folder: Path) -> Iterator[tuple[str, str]]:
    """Yields the problems of the folder of a model in Hugging Face format."""
    try:
        weights.locate(model, base_folder=base_folder)
    except FleetError as error:
        yield "model", str(error)


def resolved_weights(model: str, models: ModelFolders) -> Path | str:
    """The folder of a model in Hugging Face format, or its hub name; converts a packaged GGUF file."""
    return weights.resolve(model, cache=models.cache, report=models.report, base_folder=models.base_folder)


def command_of(engine: InferenceEngine, expert: LocalExpert, address: ListenAddress) -> str:
    """The path of the engine's program. Raises FleetError with the way to install it."""
    return str(
        arguments.find_command(engine.command, expert=expert.name, folders=address.bin_folders, install=engine.install)
    )


def spare_threads() -> int:
    """The cores that this process may use, minus one: with one thread for each, a server on a busy machine falls to a
    tenth of its speed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


def gpu_environment(gpus: tuple[int, ...]) -> dict[str, str]:
    """Confines a server to these GPUs, in the order that nvidia-smi shows; empty without any."""
    if not gpus:
        return {}
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
