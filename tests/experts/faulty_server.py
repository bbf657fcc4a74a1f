"""A real HTTP server that answers chat completions in every wrong way, chosen by the model name in the request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

CHUNK = b'data: {"model":"%s","choices":[{"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":2,"completion_tokens":4}}\n\n'
DONE = b"data: [DONE]\n\n"


class FaultyServer:
    """`seen` holds the parsed bodies; `dropped` is set when a client closes a stream that was not at its end."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.dropped = asyncio.Event()
        self.url = ""

    async def start(self) -> web.AppRunner:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        return runner

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body)
        self.headers.append(dict(request.headers))
        kind, _, argument = body["model"].partition(":")
        answer: Callable[..., Awaitable[web.StreamResponse]] = getattr(self, f"_{kind.replace('-', '_')}")
        return await answer(request, argument)

    async def _good(self, request: web.Request, model: str) -> web.StreamResponse:
        body = await request.json()
        if not body.get("stream"):
            usage = {"prompt_tokens": 2, "completion_tokens": 4}
            return web.json_response({"model": body["model"], "choices": [{"message": {}}], "usage": usage})
        return await self._events(request, CHUNK % body["model"].encode(), LAST, DONE)

    async def _status(self, request: web.Request, status: str) -> web.StreamResponse:
        return web.json_response({"error": {"message": "because I say so"}}, status=int(status))

    async def _detail(self, request: web.Request, status: str) -> web.StreamResponse:
        return web.json_response({"detail": "unexpected field"}, status=int(status))

    async def _redirect(self, request: web.Request, _: str) -> web.StreamResponse:
        return web.Response(status=302, headers={"location": "http://127.0.0.1:1/"})

    async def _silent(self, request: web.Request, _: str) -> web.StreamResponse:
        return await self._events(request, None)

    async def _text(self, request: web.Request, text: str) -> web.StreamResponse:
        return web.Response(text=text, content_type="application/json")

    async def _stream_text(self, request: web.Request, text: str) -> web.StreamResponse:
        return await self._events(request, text.encode())

    async def _no_done(self, request: web.Request, _: str) -> web.StreamResponse:
        return await self._events(request, CHUNK % b"m", LAST)

    async def _fails_late(self, request: web.Request, _: str) -> web.StreamResponse:
        return await self._events(request, CHUNK % b"m", b'data: {"error":{"message":"cuda died"}}\n\n', DONE)

    async def _slow_start(self, request: web.Request, _: str) -> web.StreamResponse:
        return await self._events(request, b"\r\n\r\n", b": ping\n\n", CHUNK % b"m", LAST, DONE)

    async def _nested_reason(self, request: web.Request, _: str) -> web.StreamResponse:
        text = '{"error":' + "[" * 300 + "]" * 300 + "}"
        return web.Response(text=text, status=500, content_type="application/json")

    async def _truncated(self, request: web.Request, _: str) -> web.StreamResponse:
        return await self._events(request, CHUNK % b"m")

    async def _torn(self, request: web.Request, _: str) -> web.StreamResponse:
        response = await self._events(request, CHUNK % b"m", b'data: {"half', end=False)
        assert request.transport is not None
        request.transport.abort()
        return response

    async def _stalls(self, request: web.Request, _: str) -> web.StreamResponse:
        return await self._events(request, CHUNK % b"m", None)

    async def _split(self, request: web.Request, _: str) -> web.StreamResponse:
        whole = CHUNK % b"m" + LAST + DONE
        return await self._events(request, *(whole[i : i + 7] for i in range(0, len(whole), 7)))

    async def _events(self, request: web.Request, *pieces: bytes | None, end: bool = True) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        try:
            for piece in pieces:
                if piece is None:  # until the client goes
                    while request.transport is not None and not request.transport.is_closing():
                        await asyncio.sleep(0.005)
                    self.dropped.set()
                    return response
                await response.write(piece)
        except (ConnectionError, asyncio.CancelledError):
            self.dropped.set()
            raise
        if end:
            await response.write_eof()
        return response
