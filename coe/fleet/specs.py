"""The inputs and outputs of planning: a declared local expert, and the server process to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from coe.fleet.ports import HOST

Flag = str | int | float | bool


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where a server listens, its log file, and the folder where its command may be installed."""

    host: str
    port: int
    log: Path
    bin_folder: Path


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """One server process to run.

    `key` names it in messages and files. `argv` runs with `env` added to the environment. `model` is the name that
    requests must use, None for a server without a model that reports its readiness itself (the gateway). `log` receives
    its output. `ready_timeout` is in seconds, from start to first answer. `host` is its address. `adapters` are the
    LoRA folders that it serves from the start, by name.
    """

    key: str
    argv: tuple[str, ...]
    port: int
    env: Mapping[str, str] = field(repr=False)
    model: str | None
    log: Path
    ready_timeout: float
    host: str = HOST
    adapters: Mapping[str, Path] = field(default_factory=dict)

    @property
    def root(self) -> str:
        """The URL of its pages."""
        return f"http://{self.host}:{self.port}"

    @property
    def command(self) -> tuple[str, ...]:
        """The command line: `argv` and the adapters."""
        modules = tuple(f"{name}={folder}" for name, folder in self.adapters.items())
        return (*self.argv, "--lora-modules", *modules) if modules else self.argv


class LocalExpert(Protocol):
    """A declared expert, as planning reads it.

    `options` are command line flags, a boolean set or negated. `adapter` is a LoRA folder on top of the model. `gpus`
    are the devices its server may use, all if empty.
    """

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def runtime(self) -> str: ...

    @property
    def options(self) -> Mapping[str, Flag]: ...

    @property
    def adapter(self) -> str | None: ...

    @property
    def gpus(self) -> tuple[int, ...]: ...
