"""What planning reads of a declared expert, and the server process it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from coe.fleet.ports import HOST

Flag = str | int | float | bool


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where a server is to listen, what takes its output, and where its command may be installed."""

    host: str
    port: int
    log: Path
    bin_folder: Path


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """One server process to run.

    `key` names it in messages and files; `argv` is run with `env` on top of the environment; `model` is what requests
    must name, None for a server that has no model of its own and says by itself when it is ready (the gateway); `log`
    takes its output; `ready_timeout` is in seconds, from start to first answer; `host` is where it can be asked;
    `adapters` are the LoRA folders it serves from the start, by the name that requests give.
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
        """Where its pages are."""
        return f"http://{self.host}:{self.port}"

    @property
    def command(self) -> tuple[str, ...]:
        """What to run: `argv` and the adapters."""
        modules = tuple(f"{name}={folder}" for name, folder in self.adapters.items())
        return (*self.argv, "--lora-modules", *modules) if modules else self.argv


class LocalExpert(Protocol):
    """`options` are command line flags, a boolean one set or negated; `adapter` is a LoRA folder on top of the model;
    `gpus` are the devices its server may use, all where none is named."""

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
