"""The administrative API of a running vLLM server: sleep and wake, load and unload LoRA adapters.

vLLM offers these endpoints, without a key, only if its environment enables them. They are for the process that started
the server, on loopback; no route of the gateway leads to them.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from coe.errors import FleetError

DEV_MODE_VARIABLE = "VLLM_SERVER_DEV_MODE"
LORA_UPDATING_VARIABLE = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
"""Environment variables that enable the endpoints, if set to 1."""
SLEEP_TIMEOUT = 120.0
"""Seconds for requests in flight to end and the weights to leave the device."""
WAKE_TIMEOUT = 600.0
"""Seconds for the weights to return; from disk after level 2."""
ADAPTER_TIMEOUT = 120.0
_SHORT = 10.0
_NOT_FOUND = 404


class VllmClient:
    """The server at `root`, such as http://127.0.0.1:20001.

    Every method is bounded by `time_limit` in seconds, may be repeated, and raises FleetError with the server's own
    message if it is refused.
    """

    def __init__(self, root: str, *, session: aiohttp.ClientSession) -> None:
        self._root = root.rstrip("/")
        self._session = session

    async def sleep(self, *, level: int = 1, time_limit: float = SLEEP_TIMEOUT) -> None:
        """Lets requests in flight end, then frees the device. Level 1 keeps the weights in RAM, level 2 drops them.

        Later requests wait, without an answer, until `wake`: send none. A server that is not asleep in time is woken
        again before the error is raised, so that no request waits in it unnoticed. Memory is freed only if the
        server was started with `--enable-sleep-mode` on a GPU; elsewhere it only pauses.
        """
        try:
            await self._post(f"/sleep?level={level}&mode=wait", time_limit=time_limit)
        except FleetError:
            with suppress(FleetError):
                await self._post("/wake_up", time_limit=_SHORT)
            raise

    async def wake(self, *, level: int = 1, time_limit: float = WAKE_TIMEOUT) -> None:
        """Undoes a `sleep` of that level: after level 2 the weights are read from disk. No effect when awake."""
        if level >= 2:
            await self._post("/wake_up?tags=weights", time_limit=time_limit)
            await self._post("/collective_rpc", {"method": "reload_weights"}, time_limit=time_limit)
            await self._post("/wake_up?tags=kv_cache", time_limit=time_limit)
        else:
            await self._post("/wake_up", time_limit=time_limit)

    async def is_sleeping(self, *, time_limit: float = _SHORT) -> bool:
        """Returns True if it sleeps at any level."""
        _, text = await self._request("GET", "/is_sleeping", None, time_limit=time_limit)
        try:
            return bool(orjson.loads(text)["is_sleeping"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise FleetError(f"{self._root}/is_sleeping answered {text[:100]!r}; is this a vLLM server?") from None

    async def load_adapter(self, name: str, folder: Path, *, time_limit: float = ADAPTER_TIMEOUT) -> None:
        """Serves the LoRA adapter in `folder` as the model `name`, and replaces one of the same name."""
        body = {"lora_name": name, "lora_path": str(folder), "load_inplace": True}
        await self._post("/v1/load_lora_adapter", body, time_limit=time_limit)

    async def unload_adapter(self, name: str, *, time_limit: float = ADAPTER_TIMEOUT) -> None:
        """Stops serving `name`; requests in flight complete. An unknown name is no error."""
        await self._post("/v1/unload_lora_adapter", {"lora_name": name}, time_limit=time_limit, allow_missing=True)

    async def _post(self, path: str, body: Any = None, *, time_limit: float, allow_missing: bool = False) -> None:
        await self._request("POST", path, body, time_limit=time_limit, allow_missing=allow_missing)

    async def _request(
        self, method: str, path: str, body: Any, *, time_limit: float, allow_missing: bool = False
    ) -> tuple[int, bytes]:
        """Status and text of a response. With `allow_missing` a 404 for a known endpoint is no error."""
        url, limit = f"{self._root}{path}", aiohttp.ClientTimeout(total=time_limit)
        try:
            async with self._session.request(method, url, json=body, timeout=limit) as response:
                status, text = response.status, await response.content.read(2**16)
        except TimeoutError:
            raise FleetError(f"{url} gave no answer within {time_limit:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise FleetError(f"{url} cannot be reached: {error}") from None
        if status < 400 or (allow_missing and status == _NOT_FOUND and b"cannot be found" in text):
            return status, text
        raise FleetError(f"{url} answered {status}: {_message(text)}")


def _message(text: bytes) -> str:
    """The message inside an error body."""
    try:
        found = orjson.loads(text)
        return str(found["error"]["message"] if "error" in found else found["detail"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return text[:300].decode(errors="replace")
