"""A minimal Python gateway: forwards bodies and responses unchanged. Lower bound of overhead.

Arguments: upstream, port, and the server: `granian` (default), which the older figures compare with, or `own`, the
gateway's.
"""

from __future__ import annotations

import sys
from typing import Any

import aiohttp
import uvloop
from granian.constants import Interfaces, Loops
from granian.server import Server

from gateway import server as own


class Passthrough:
    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
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


async def serve(app: Passthrough, port: int) -> None:
    """Serve with the gateway's server until the process is killed."""
    listener = own.open_listener("127.0.0.1", port, stalled_after=60)
    await own.Server(app, max_connections=1000).serve([listener])


if __name__ == "__main__":
    app, port = Passthrough(sys.argv[1]), int(sys.argv[2])
    if sys.argv[3:] == ["own"]:
        uvloop.run(serve(app, port))
    else:
        server = Server("passthrough", port=port, interface=Interfaces.ASGINL, loop=Loops.uvloop, log_enabled=False)
        server.serve(target_loader=lambda *_: app, wrap_loader=False)
