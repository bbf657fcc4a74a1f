"""Serves models with Ollama: one `ollama serve` process for each pulled model.

It has no flags: options become its environment variables, so `context-length` is OLLAMA_CONTEXT_LENGTH. Sleep unloads
the model and keeps the process. An Ollama that already runs is an external server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from coe.errors import FleetError
from coe.fleet.engines.admin import EngineClient
from coe.fleet.engines.engine import ExpertProblems, InferenceEngine, ServerPlace, gpu_environment
from coe.fleet.specs import ServerSpec
from coe.registry import ExpertSpec
from coe.registry.experts import full_ollama_name

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

    def problems(self, expert: ExpertSpec, base_folder: Path) -> ExpertProblems:
        if expert.model.endswith(".gguf") or expert.model.startswith((".", "/", "~")):
            yield "model", f"Ollama serves its own models, not files; import {expert.model!r}, or use runtime llama.cpp"
        if expert.model.endswith(_HOSTED):
            yield "model", f"{expert.model!r} runs at Ollama's own service, not here; declare it with runtime: external"

    def server_spec(self, first: ExpertSpec, adapters: Mapping[str, Path], place: ServerPlace) -> ServerSpec:
        options = {
            f"OLLAMA_{name.replace('-', '_').upper()}": str(int(value) if isinstance(value, bool) else value)
            for name, value in self.flags(first).items()
        }
        env = options | {
            "OLLAMA_HOST": f"{place.host}:{place.port}",
            "OLLAMA_KEEP_ALIVE": "-1",  # residency unloads it, not a timer
            "OLLAMA_MAX_LOADED_MODELS": "1",
            **gpu_environment(first.gpus),
        }
        return self.spec(
            first,
            place,
            argv=(self.locate(first, place), "serve"),
            env=env,
            model=first.model,
            health_path="/api/version",
            open_client=partial(OllamaClient, model=full_ollama_name(first.model)),
        )


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
                while await self._is_loaded():  # noqa: ASYNC110  a server's state
                    await asyncio.sleep(_POLL_INTERVAL)
        except TimeoutError:
            raise FleetError(f"{self._root} still has {self._model!r} in memory after {SLEEP_TIMEOUT:g} s") from None

    async def wake(self, *, level: int) -> None:
        body = {"model": self._model, "keep_alive": -1, "stream": False}
        await self._post("/api/generate", body, time_limit=WAKE_TIMEOUT)

    async def _is_loaded(self) -> bool:
        page = await self._get("/api/ps", time_limit=SLEEP_TIMEOUT)
        listed = page.get("models") if isinstance(page, dict) else None
        return any(isinstance(one, dict) and self._model in (one.get("name"), one.get("model")) for one in listed or ())
