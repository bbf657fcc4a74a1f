"""SGLang servers, with sleep by releasing and resuming GPU memory.

Flags and endpoints are those of SGLang 0.5.23. Sleep needs `--enable-memory-saver`, and level 1 the backup of the
weights in RAM; both follow from the expert's `sleep_level`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from coe.fleet import weights
from coe.fleet.engines.admin import EngineClient
from coe.fleet.engines.engine import InferenceEngine, ServerPlace, gpu_environment, to_argv
from coe.fleet.specs import ServerSpec
from coe.registry import ExpertSpec
from coe.registry.sections import Flag

if TYPE_CHECKING:
    import aiohttp

DRAIN_TIMEOUT = 120.0
"""Seconds for requests in flight to end before sleep."""
SLEEP_TIMEOUT = 120.0
WAKE_TIMEOUT = 600.0


class SGLang(InferenceEngine):
    """SGLang. Several of its `parallel_flags` are names of one flag."""

    command = "sglang"
    install = "`uv tool install sglang`"
    reserved_flags = frozenset(
        {"host", "port", "served-model-name", "model", "model-path", "lora-paths"}
        | {"enable-memory-saver", "enable-weights-cpu-backup"}
    )
    parallel_flags = (
        *("tp", "tp-size", "tensor-parallel-size", "pp-size", "pipeline-parallel-size"),
        *("dp", "dp-size", "data-parallel-size"),
    )

    def flags(self, expert: ExpertSpec) -> dict[str, Flag]:
        """Adds the flags for the metrics page (which shows the queue) and for sleep. Flags that are False are left out,
        since SGLang has no negated flags."""
        flags: dict[str, Flag] = {"enable-metrics": True, "enable-memory-saver": bool(expert.sleep_level)}
        flags |= {"enable-weights-cpu-backup": expert.sleep_level == 1} | super().flags(expert)
        return {name: value for name, value in flags.items() if value is not False}

    def server_spec(self, first: ExpertSpec, adapters: Mapping[str, Path], place: ServerPlace) -> ServerSpec:
        model = place.resolve(first.model)
        command = (self.locate(first, place), "serve", "--model-path", str(model), "--served-model-name", first.name)
        # its health page would wait a second or more for a token
        env = {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0"} | gpu_environment(first.gpus)
        return self.spec(
            first,
            place,
            argv=(*command, *place.flags, *to_argv(self.flags(first))),
            env=env | weights.offline_environment(model),
            model=first.name,
            open_client=partial(SGLangClient, model=str(model)),
        )


class SGLangClient(EngineClient):
    """Controls the SGLang server at a URL; `model` are its weights, which level 2 reads again from disk."""

    def __init__(self, root: str, session: aiohttp.ClientSession, *, model: str) -> None:
        super().__init__(root, session)
        self._model = model

    async def sleep(self, *, level: int) -> None:
        """Release the memory as `EngineClient.sleep` does. A server that is not idle exits instead."""
        await self._post(f"/flush_cache?timeout={DRAIN_TIMEOUT:g}", time_limit=DRAIN_TIMEOUT + 10)
        await self._post("/release_memory_occupation", {}, time_limit=SLEEP_TIMEOUT)

    async def wake(self, *, level: int) -> None:
        if level >= 2:
            await self._resume("weights")
            await self._post("/update_weights_from_disk", {"model_path": self._model}, time_limit=WAKE_TIMEOUT)
            await self._resume("kv_cache", "cuda_graph")
        else:
            await self._resume()

    async def _resume(self, *tags: str) -> None:
        await self._post("/resume_memory_occupation", {"tags": tags} if tags else {}, time_limit=WAKE_TIMEOUT)
