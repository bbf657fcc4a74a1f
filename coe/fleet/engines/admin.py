"""The administrative API of a running server: sleep and wake.

These endpoints are for the process that started the server, on loopback; no route of the gateway leads to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from coe.errors import FleetError

if TYPE_CHECKING:
    import aiohttp


class EngineClient:
    """Controls the running server at `root`. Every method is bounded in time and raises FleetError.

    `wake` follows a `sleep` that did not fail. This base class is the client of a server that can only be stopped.
    """

    def __init__(self, root: str, session: aiohttp.ClientSession) -> None:
        self._root, self._session = root.rstrip("/"), session

    async def sleep(self, *, level: int) -> None:
        """Lets requests in flight end, then frees the device. Level 1 keeps the weights in RAM, level 2 drops them."""
        raise FleetError(f"{self._root} cannot sleep at level {level}")

    async def wake(self, *, level: int) -> None:
        """Undoes a `sleep` of that level."""
        raise FleetError(f"{self._root} cannot wake from level {level}")

    async def _post(self, path: str, body: Any = None, *, time_limit: float) -> None:
        await self._request("POST", path, body, time_limit=time_limit)

    async def _get(self, path: str, *, time_limit: float) -> Any:
        """The JSON of a page."""
        text = await self._request("GET", path, None, time_limit=time_limit)
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            raise FleetError(f"{self._root}{path} answered {text[:100]!r}, which is not JSON") from None

    async def _request(self, method: str, path: str, body: Any, *, time_limit: float) -> bytes:
        import aiohttp  # not for the gateway, which starts no server

        url, limit = f"{self._root}{path}", aiohttp.ClientTimeout(total=time_limit)
        try:
            async with self._session.request(method, url, json=body, timeout=limit) as response:
                status, text = response.status, await response.content.read(2**16)
        except TimeoutError:
            raise FleetError(f"{url} gave no answer within {time_limit:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise FleetError(f"{url} cannot be reached: {error}") from None
        if status < 400:
            return text
        raise FleetError(f"{url} answered {status}: {_message(text)}")


ClientFactory = Callable[[str, "aiohttp.ClientSession"], EngineClient]
"""Makes the client of the server at a URL such as http://127.0.0.1:20001."""


def _message(text: bytes) -> str:
    """The message inside an error body."""
    try:
        found = orjson.loads(text)
        error = found["error"] if "error" in found else found["detail"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return text[:300].decode(errors="replace")
