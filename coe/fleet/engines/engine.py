"""The base class of inference engines: how CoE plans the servers of one runtime, and finds their commands and weights.

An engine builds a `ServerSpec`: command line, environment, pages to probe, load times, and the client that puts the
server to sleep. Processes, probes, restarts, logs and residency are the same for all engines and know specs only.
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from coe.errors import FleetError
from coe.fleet import weights
from coe.fleet.specs import ServerSpec
from coe.registry import ExpertSpec
from coe.registry.experts import normalized_options
from coe.registry.sections import Flag

Options = Mapping[str, Flag]
"""Options of a server by their names on the command line, without dashes."""
ExpertProblems = Iterator[tuple[str, str]]
"""Keys of an expert in experts.yaml, and what is wrong with the remedy."""


@dataclass(frozen=True, slots=True)
class ServerPlace:
    """The place of one server: its address, its log file, and its folders.

    Folders of models in experts.yaml are relative to `base_folder`; converted weights go into `cache`, and `report`
    receives a line for each conversion. `bin_folder` is searched for the command before PATH.
    """

    host: str
    port: int
    log: Path
    bin_folder: Path
    base_folder: Path
    cache: Path
    report: Callable[[str], None]

    @property
    def flags(self) -> tuple[str, ...]:
        """The address as most servers take it."""
        return ("--host", self.host, "--port", str(self.port))

    def resolve(self, model: str) -> Path | str:
        """The folder of a model in Hugging Face format, or its hub name; converts a packaged GGUF file."""
        return weights.resolve(model, cache=self.cache, report=self.report, base_folder=self.base_folder)


class InferenceEngine(ABC):
    """Plans the servers of one runtime.

    `command` is the program, `install` the way to get it. `reserved_flags` are options that CoE sets from the rest of
    the declaration, `parallel_flags` those that spread a model over GPUs. `ready_timeout` is the time for the first
    token in seconds: large weights may come from a slow disk or the hub.
    """

    command: str
    install: str
    reserved_flags: frozenset[str]
    parallel_flags: tuple[str, ...] = ()
    ready_timeout = 900.0

    def flags(self, expert: ExpertSpec) -> dict[str, Flag]:
        """The options of the expert's server, defaults included. Several declared GPUs hold the model together."""
        declared = normalized_options(expert.options)
        spread = self.parallel_flags and len(expert.gpus) > 1 and self.devices(declared) == 1
        return ({"tensor-parallel-size": len(expert.gpus)} if spread else {}) | declared

    def devices(self, options: Options) -> int:
        """The number of GPUs that the options spread a model over; 1 by default."""
        return prod(size for name in self.parallel_flags if isinstance(size := options.get(name), int))

    def problems(self, expert: ExpertSpec, base_folder: Path) -> ExpertProblems:
        """Yields what is wrong as far as the declaration and the disk show it; by default the problems of the folder of
        a model in Hugging Face format."""
        try:
            weights.locate(expert.model, base_folder=base_folder)
        except FleetError as error:
            yield "model", str(error)

    @abstractmethod
    def server_spec(self, first: ExpertSpec, adapters: Mapping[str, Path], place: ServerPlace) -> ServerSpec:
        """The server of `first` and of all adapters on it. Raises FleetError, such as for a missing command."""

    def spec(self, first: ExpertSpec, place: ServerPlace, **rest: Any) -> ServerSpec:
        """The server of `first` at its place; `rest` are the other fields of the spec."""
        address: dict[str, Any] = {"host": place.host, "port": place.port, "log": place.log}
        return ServerSpec(key=first.name, ready_timeout=self.ready_timeout, **address, **rest)

    def locate(self, expert: ExpertSpec, place: ServerPlace) -> str:
        """The path of the program. Raises FleetError with the way to install it."""
        found = locate_command(self.command, place.bin_folder)
        if found is None:
            raise FleetError(
                f"expert {expert.name!r}: the command {self.command!r} is neither in {place.bin_folder} nor on PATH; "
                f"install it with {self.install}, or declare the expert as external"
            )
        return found


def locate_command(name: str, folder: Path) -> str | None:
    """Return the path of a command in the folder or on PATH; None if there is none."""
    beside = folder / name
    return str(beside) if beside.is_file() else shutil.which(name)


def to_argv(options: Options) -> Iterator[str]:
    """Yields the options as arguments, in the given order; a boolean is set or negated."""
    for name, value in options.items():
        if isinstance(value, bool):
            yield f"--{name}" if value else f"--no-{name}"
        else:
            yield from (f"--{name}", str(value))


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
