"""Serves models with Ollama: one `ollama serve` process for each pulled model, or an Ollama that already runs.

It has no flags: options become its environment variables, so `context-length` is OLLAMA_CONTEXT_LENGTH. Sleep unloads
the model and keeps the process. With `base_url`, a process that only loads and unloads the model (`ollama_keeper`)
takes the place of the server, so that health checks, restarts and residency are those of every engine.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from coe.errors import FleetError
from coe.fleet.engines import ollama_keeper
from coe.fleet.engines.admin import EngineClient
from coe.fleet.engines.engine import InferenceEngine, ModelFolders, gpu_environment
from coe.fleet.specs import ListenAddress, ServerSpec, root_of
from coe.registry import ExpertSpec
from coe.registry.sections import Flag

if TYPE_CHECKING:
    import aiohttp

SLEEP_TIMEOUT = 120.0
WAKE_TIMEOUT = 600.0
_POLL_INTERVAL = 0.1
_HOSTED = ("-cloud", ":cloud")
"""Suffixes of model names that Ollama forwards to its hosted service."""


class Ollama(InferenceEngine):
    """`ollama serve`, which splits a model over the GPUs that it sees."""

    command = "ollama"
    install = "its installer (ollama.com/download)"
    reserved_flags = frozenset({"host", "keep-alive", "max-loaded-models"})
    ready_timeout = 600.0

    def problems(
        self, expert: ExpertSpec, options: Mapping[str, Flag], *, base_folder: Path
    ) -> Iterator[tuple[str, str]]:
        if expert.model.endswith(".gguf") or expert.model.startswith((".", "/", "~")):
            yield "model", f"Ollama serves its own models, not files; import {expert.model!r}, or use runtime llama.cpp"
        if expert.model.endswith(_HOSTED):
            yield "model", f"{expert.model!r} runs at Ollama's own service, not here; declare it with runtime: external"
        if expert.base_url is not None:
            remedy = "set them where yours starts, or leave out base_url"
            for key, declared in (("options", options), ("gpus", expert.gpus)):
                if declared:
                    yield key, f"`{key}` are for an Ollama that CoE starts; {remedy}"

    def server_spec(
        self, first: ExpertSpec, *, adapters: Mapping[str, Path], models: ModelFolders, address: ListenAddress
    ) -> ServerSpec:
        model, client = first.server_key.model, partial(OllamaClient, model=first.server_key.model)
        shared: dict[str, Any] = {"model": first.model, "health_path": "/api/version", "open_client": client}
        if first.base_url is not None:  # an Ollama that runs already
            host, port = _address(first.base_url)
            argv = (sys.executable, "-P", ollama_keeper.__file__, root_of(host, port), model)
            return self.spec(first, address, argv=argv, host=host, port=port, env={}, attached=True, **shared)
        env = {_variable(name): _value(value) for name, value in self.flags(first).items()} | {
            "OLLAMA_HOST": f"{address.host}:{address.port}",
            "OLLAMA_KEEP_ALIVE": "-1",  # residency unloads it, not a timer
            "OLLAMA_MAX_LOADED_MODELS": "1",
            **gpu_environment(first.gpus),
        }
        return self.spec(first, address, argv=(self.locate(first, address), "serve"), env=env, **shared)


def _address(base_url: str) -> tuple[str, int]:
    parts = urlsplit(base_url)
    return parts.hostname or "", parts.port or 80


def _variable(option: str) -> str:
    return f"OLLAMA_{option.replace('-', '_').upper()}"


def _value(value: Flag) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


class OllamaClient(EngineClient):
    """Controls the Ollama server at a URL: unloads and loads `model`, a name with its tag."""

    def __init__(self, root: str, session: aiohttp.ClientSession, *, model: str) -> None:
        super().__init__(root, session)
        self._model = model

    async def sleep(self, *, level: int) -> None:
        """Unload the model as `EngineClient.sleep` does; returns once the model is not in memory any more."""
        await self._post("/api/generate", {"model": self._model, "keep_alive": 0}, time_limit=SLEEP_TIMEOUT)
        try:
            async with asyncio.timeout(SLEEP_TIMEOUT):
                while await self._loaded():  # noqa: ASYNC110  a server's state
                    await asyncio.sleep(_POLL_INTERVAL)
        except TimeoutError:
            raise FleetError(f"{self._root} still has {self._model!r} in memory after {SLEEP_TIMEOUT:g} s") from None

    async def wake(self, *, level: int) -> None:
        body = {"model": self._model, "keep_alive": -1, "stream": False}
        await self._post("/api/generate", body, time_limit=WAKE_TIMEOUT)

    async def _loaded(self) -> bool:
        page = await self._get("/api/ps", time_limit=SLEEP_TIMEOUT)
        return ollama_keeper.is_loaded(page, self._model)
