"""`coe engine`: lists the inference engines of this machine, and installs one into its own environment."""

from __future__ import annotations

import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import typer

from coe.cli.common import Config, Json, print_result, settings_for
from coe.errors import FleetError
from coe.fleet.engines import environments
from coe.fleet.engines.environments import Build, Installer, Machine
from coe.settings import Settings
from coe.terminal import print_line

VERSION_TIMEOUT = 5.0
"""Seconds for a command to print its version."""
_PROBED = ("llama.cpp", "ollama")
"""Engines whose command prints its version at once; others import torch first."""

app = typer.Typer(no_args_is_help=True, help="List and install inference engines.")

Name = Annotated[str, typer.Argument(metavar="ENGINE", help="vllm, sglang or llama.cpp.")]
BuildOption = Annotated[
    Literal["auto", "cuda", "rocm", "cpu"],
    typer.Option("--build", help="The build; auto selects the one for this machine."),
]
Force = Annotated[
    bool, typer.Option("--force", help="Reinstall the newest tested version; running servers keep the earlier one.")
]


@dataclass(frozen=True, slots=True)
class EngineState:
    """One engine on this machine: its command (None if missing), its version, and how to install it."""

    runtime: str
    command: str | None
    version: str | None
    build: str | None
    note: str


@app.command("list")
def list_engines(config: Config = None, json: Json = False) -> None:
    """List each engine with its version and command, and what this machine can run."""
    from coe.fleet.engines.catalog import ENGINES

    settings, machine = settings_for(config), Machine.detect()
    states = [_state(runtime, settings, machine) for runtime in ENGINES]
    lines = [f"this machine runs {machine.accelerator} builds ({machine.system})"]
    lines += [f"{state.runtime:<13}{state.version or '-':<15} {state.command or state.note}" for state in states]
    print_result({"machine": machine.accelerator, "engines": list(map(asdict, states))}, lines, json=json)


def _state(runtime: str, settings: Settings, machine: Machine) -> EngineState:
    from coe.fleet.engines.catalog import ENGINES, command_here

    command = command_here(runtime, settings.engines)
    own = environments.installed(settings.engines, runtime)
    if command is not None:
        found = own.version if own is not None else _version(runtime, command)
        return EngineState(runtime, str(command), found, own.build if own else None, "")
    if runtime not in environments.INSTALLABLE:
        return EngineState(runtime, None, None, None, f"not installed: {ENGINES[runtime].install}")
    found = environments.obstacle(runtime, machine.accelerator, machine)
    return EngineState(runtime, None, None, None, f"not installed: {found or ENGINES[runtime].install}")


def _version(runtime: str, command: Path) -> str | None:
    """The version of a command that CoE did not install; None if it is unknown."""
    if runtime not in _PROBED:
        try:
            return version(runtime)
        except PackageNotFoundError:
            return None
    try:
        done = subprocess.run(  # noqa: S603  the engine's own command
            (str(command), "--version"), stdin=subprocess.DEVNULL, capture_output=True, timeout=VERSION_TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return environments.first_version((done.stdout + done.stderr).decode(errors="replace")) or None


@app.command("install")
def install(name: Name, build: BuildOption = "auto", force: Force = False, config: Config = None) -> None:
    """Install an engine into its own environment, where `coe up` finds it.

    It uses uv if installed, else venv and pip. llama.cpp is compiled, which takes some minutes.
    """
    from coe.fleet.engines.catalog import ENGINES

    if name not in environments.INSTALLABLE:
        known = ", ".join(environments.INSTALLABLE)
        hint = f"; {ENGINES[name].install}" if name in ENGINES else ""
        raise typer.BadParameter(f"{name!r} cannot be installed; known: {known}{hint}")
    settings, machine = settings_for(config), Machine.detect()
    chosen: Build = machine.accelerator if build == "auto" else build
    found = environments.installed(settings.engines, name)
    if found is not None and not force:
        print_line(f"{name} {found.version} ({found.build}) is installed in {found.folder}; --force installs it again")
        return
    if (why := environments.obstacle(name, chosen, machine)) is not None:
        raise FleetError(f"{name} cannot be installed here: {why}")
    log = settings.logs / f"engine-{name}.log"
    done = Installer(name, chosen, engines=settings.engines, log=log, report=print_line).install()
    print_line(f"{name} {done.version} ({done.build}) is installed in {done.folder}; `coe up` finds it")
