"""A minimal Python gateway: forwards bodies and responses unchanged. Lower bound of overhead.

Arguments: upstream and port. It runs on uvicorn, whose protocol the gateway's server extends.
"""

from __future__ import annotations

import sys
from typing import Any

import aiohttp
import uvicorn


class Passthrough:
    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._session = self._session or aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        url, headers = self._upstream + scope["path"], {"content-type": "application/json"}
        async with self._session.request(scope["method"], url, data=body, headers=headers) as response:
            kind = response.headers.get("content-type", "application/json").encode()
            start = {"type": "http.response.start", "status": response.status, "headers": [(b"content-type", kind)]}
            await send(start)
            async for chunk in response.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


if __name__ == "__main__":
    uvicorn.run(Passthrough(sys.argv[1]), port=int(sys.argv[2]), lifespan="off", access_log=False, log_level="error")
