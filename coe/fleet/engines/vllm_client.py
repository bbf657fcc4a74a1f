"""The administrative API of a vLLM server: sleep and wake, load and unload LoRA adapters.

vLLM offers these endpoints, without a key, only if its environment enables them.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from coe.errors import FleetError
from coe.fleet.engines.admin import AdminHttp

DEV_MODE_VARIABLE = "VLLM_SERVER_DEV_MODE"
LORA_UPDATING_VARIABLE = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
"""Environment variables that enable the endpoints, if set to 1."""
SLEEP_TIMEOUT = 120.0
"""Seconds for requests in flight to end and the weights to leave the device."""
WAKE_TIMEOUT = 600.0
"""Seconds for the weights to return; from disk after level 2."""
ADAPTER_TIMEOUT = 120.0
_SHORT = 10.0


class VllmClient(AdminHttp):
    """Controls the vLLM server at a URL; refusals are raised with the server's own message."""

    async def sleep(self, *, level: int = 1, time_limit: float = SLEEP_TIMEOUT) -> None:
        """Put the server to sleep. Send no requests while it sleeps: they wait without an answer until `wake`.

        A server that is not asleep in time is woken again before the error is raised, so that no request waits in it
        unnoticed. Memory is freed only if the server was started with `--enable-sleep-mode` on a GPU; elsewhere it only
        pauses.
        """
        try:
            await self._post(f"/sleep?level={level}&mode=wait", time_limit=time_limit)
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
