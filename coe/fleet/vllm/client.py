"""What can be asked of a running vLLM server besides answers: to sleep and to wake, to load and unload LoRA adapters.

vLLM has these endpoints, without any key, only where its environment says so. They are for the process that started
the server, on loopback: the gateway has no route that leads to them.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from coe.errors import FleetError

VERBS = "VLLM_SERVER_DEV_MODE"
ADAPTERS_MAY_CHANGE = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
"""Set to 1 in the environment of a server, these give it the endpoints asked here."""
SLEEP_TIMEOUT = 120.0
"""Seconds for work in flight to end and the weights to leave the device."""
WAKE_TIMEOUT = 600.0
"""Seconds for the weights to come back; from disk after level 2."""
ADAPTER_TIMEOUT = 120.0
_SHORT = 10.0
_NOT_FOUND = 404


class Vllm:
    """The server at `root`, such as http://127.0.0.1:20001. Every verb is bounded in time, may be repeated, and raises
    FleetError with the server's own words when it is refused. `within` is in seconds."""

    def __init__(self, root: str, *, session: aiohttp.ClientSession) -> None:
        self._root = root.rstrip("/")
        self._session = session

    async def sleep(self, *, level: int = 1, within: float = SLEEP_TIMEOUT) -> None:
        """Let requests in flight end, then free the device: level 1 keeps the weights in RAM, level 2 nowhere.

        Requests that come later wait, without an answer, until `wake`: send none. A server that is not asleep in time
        is woken again before the error is raised, so that it never swallows requests unnoticed. Memory is freed only
        where the server was started with `--enable-sleep-mode` on a GPU; elsewhere it merely rests.
        """
        try:
            await self._post(f"/sleep?level={level}&mode=wait", within=within)
        except FleetError:
            with suppress(FleetError):
                await self._post("/wake_up", within=_SHORT)
            raise

    async def wake(self, *, level: int = 1, within: float = WAKE_TIMEOUT) -> None:
        """Undo a `sleep` of that level: after level 2 the weights are read from disk again. Harmless when awake."""
        if level >= 2:
            await self._post("/wake_up?tags=weights", within=within)
            await self._post("/collective_rpc", {"method": "reload_weights"}, within=within)
            await self._post("/wake_up?tags=kv_cache", within=within)
        else:
            await self._post("/wake_up", within=within)

    async def is_sleeping(self, *, within: float = _SHORT) -> bool:
        """Whether it sleeps at any level."""
        _, text = await self._ask("GET", "/is_sleeping", None, within=within)
        try:
            return bool(orjson.loads(text)["is_sleeping"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise FleetError(f"{self._root}/is_sleeping answered {text[:100]!r}; is this a vLLM server?") from None

    async def load_adapter(self, name: str, folder: Path, *, within: float = ADAPTER_TIMEOUT) -> None:
        """Serve the LoRA adapter of `folder` as the model `name`, in place of the one that had the name."""
        body = {"lora_name": name, "lora_path": str(folder), "load_inplace": True}
        await self._post("/v1/load_lora_adapter", body, within=within)

    async def unload_adapter(self, name: str, *, within: float = ADAPTER_TIMEOUT) -> None:
        """Serve `name` no longer. Requests in flight end as they began; a name that is not served is none to unload."""
        await self._post("/v1/unload_lora_adapter", {"lora_name": name}, within=within, absent=True)

    async def _post(self, path: str, body: Any = None, *, within: float, absent: bool = False) -> None:
        await self._ask("POST", path, body, within=within, absent=absent)

    async def _ask(
        self, method: str, path: str, body: Any, *, within: float, absent: bool = False
    ) -> tuple[int, bytes]:
        """Status and text of a page. `absent`: what does not exist is fine, where the server knows the page."""
        url, limit = f"{self._root}{path}", aiohttp.ClientTimeout(total=within)
        try:
            async with self._session.request(method, url, json=body, timeout=limit) as response:
                status, text = response.status, await response.content.read(2**16)
        except TimeoutError:
            raise FleetError(f"{url} gave no answer within {within:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise FleetError(f"{url} cannot be asked: {error}") from None
        if status < 400 or (absent and status == _NOT_FOUND and b"cannot be found" in text):
            return status, text
        raise FleetError(f"{url} answered {status}: {_message(text)}")


def _message(text: bytes) -> str:
    """What an error page says, without its wrapping."""
    try:
        found = orjson.loads(text)
        return str(found["error"]["message"] if "error" in found else found["detail"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return text[:300].decode(errors="replace")
