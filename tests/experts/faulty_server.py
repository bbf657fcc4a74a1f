"""A real HTTP server that answers in every wrong way, chosen by the model name in the request.

Speaks Chat Completions and, for a few kinds, the other APIs; shows its health, and metrics as vLLM does.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from tests.experts.other_apis import SAMPLES

CHUNK = b'data: {"model":"%s","choices":[{"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":2,"completion_tokens":4}}\n\n'
DONE = b"data: [DONE]\n\n"


class FaultyServer:
    """`seen` holds the parsed bodies; `dropped` is set when a client closes a stream that was not at its end.

    `metrics` is the page of that name, 404 while empty; `healthy` is the status of the other pages, `pages` counts all.
    """

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.dropped = asyncio.Event()
        self.sent = 0
        self.url = ""
        self.metrics = ""
        self.healthy = 200
        self.pages: Counter[str] = Counter()

    async def start(self) -> web.AppRunner:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/v1/chat/completions", self._answer)
        for api in SAMPLES:
            app.router.add_post(f"/v1/{api}", self._other)
        for page in ("/metrics", "/health", "/v1/models"):
            app.router.add_get(page, self._page)
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

    async def _page(self, request: web.Request) -> web.StreamResponse:
        self.pages[request.path] += 1
        if request.path == "/metrics":
            return web.Response(text=self.metrics, status=200 if self.metrics else 404)
        return web.Response(status=self.healthy)

    async def _other(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body)
        self.headers.append(dict(request.headers))
        kind, _, status = body["model"].partition(":")
        if kind == "status":
            return web.json_response({"error": {"message": "because I say so"}}, status=int(status))
        sample = SAMPLES[request.path.removeprefix("/v1/")]
        if not body.get("stream"):
            reported = {"error": {"message": "cuda died"}} if kind == "sorry" else {}
            return web.json_response({"model": body["model"], **sample.plain, **reported})
        texts = (text.replace('"M"', f'"{body["model"]}"') for text in sample.shown(kind))
        return await self._events(request, *(f"event: e\ndata: {text}\n\n".encode() for text in texts))

    async def _good(self, request: web.Request, model: str) -> web.StreamResponse:
        body = await request.json()
        if not body.get("stream"):
            usage = {"prompt_tokens": 2, "completion_tokens": 4}
            return web.json_response({"model": body["model"], "choices": [{"message": {}}], "usage": usage})
        return await self._events(request, CHUNK % body["model"].encode(), LAST, DONE)

    async def _status(self, request: web.Request, status: str) -> web.StreamResponse:
        return web.json_response({"error": {"message": "because I say so"}}, status=int(status))

    async def _retry(self, request: web.Request, reported: str) -> web.StreamResponse:
        status, _, after = reported.partition(":")
        return web.json_response({"error": {"message": "later"}}, status=int(status), headers={"retry-after": after})

    async def _repeats(self, request: web.Request, _: str) -> web.StreamResponse:
        return web.json_response({"error": {"message": f"no: {request.headers['authorization']}"}}, status=500)

    async def _half(self, request: web.Request, _: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-length": "100"})
        await response.prepare(request)
        await response.write(b'{"choices"')
        assert request.transport is not None
        request.transport.abort()
        return response

    async def _detail(self, request: web.Request, status: str) -> web.StreamResponse:
        return web.json_response({"detail": "unexpected field"}, status=int(status))

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

    async def _refuses(self, request: web.Request, argument: str) -> web.StreamResponse:
        """The body of the refusal comes in two pieces, or only half of it."""
        body = b'{"error": {"message": "too long", "code": "context_length_exceeded", "param": "messages[0]"}}'
        response = web.StreamResponse(status=int(argument[-3:]), headers={"content-length": str(len(body))})
        await response.prepare(request)
        await response.write(body[:30])
        if argument.startswith("never"):
            await self._until_gone(request)
        else:
            await asyncio.sleep(0.05)
            await response.write(body[30:])
        return response

    async def _until_gone(self, request: web.Request) -> None:
        """Wait until the client has closed the connection."""
        while request.transport is not None and not request.transport.is_closing():
            await asyncio.sleep(0.005)
        self.dropped.set()

    async def _stalls(self, request: web.Request, _: str) -> web.StreamResponse:
        return await self._events(request, CHUNK % b"m", None)

    async def _drips(self, request: web.Request, _: str) -> web.StreamResponse:
        """Half a second of pieces."""
        response = await self._events(request, end=False)
        for _ in range(10):
            await response.write(CHUNK % b"m")
            await asyncio.sleep(0.05)
        return await self._end(request, response)

    async def _floods(self, request: web.Request, _: str) -> web.StreamResponse:
        """Send 200 MB as fast as they are read; `sent` counts the bytes."""
        response = await self._events(request, end=False)
        chunk = b'data: {"choices":[{"delta":{"content":"' + b"x" * 4000 + b'"},"finish_reason":null}]}\n\n'
        try:
            for _ in range(50_000):
                await response.write(chunk)
                self.sent += len(chunk)
        except (ConnectionError, asyncio.CancelledError):
            self.dropped.set()
            raise
        return await self._end(request, response)

    async def _long_event(self, request: web.Request, _: str) -> web.StreamResponse:
        """A plain answer of 300 kB in two pieces, or a stream with an event of that length."""
        body = CHUNK % b"m" + CHUNK.replace(b"hi", b"x" * 300_000) % b"m" + LAST + DONE
        if (await request.json()).get("stream"):
            return await self._events(request, body[:200_000], body[200_000:])
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"choices": [{"message": {"content": "' + b"x" * 200_000)
        await response.write(b"x" * 100_000 + b'"}}]}')
        return response

    async def _late_end(self, request: web.Request, _: str) -> web.StreamResponse:
        """Send the end of the HTTP body half a second after the end of the answer."""
        response = await self._events(request, CHUNK % b"m", end=False)
        await asyncio.sleep(0.5)
        await response.write(LAST + DONE)
        await asyncio.sleep(0.03)
        await response.write_eof()
        return response

    def _note(self, request: web.Request, chunk: bytes) -> None:
        """Called before a chunk of a stream is written; for subclasses."""

    async def _end(self, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        self._note(request, LAST)
        await response.write(LAST + DONE)
        await response.write_eof()
        return response

    async def _split(self, request: web.Request, _: str) -> web.StreamResponse:
        whole = CHUNK % b"m" + LAST + DONE
        return await self._events(request, *(whole[i : i + 7] for i in range(0, len(whole), 7)))

    async def _events(self, request: web.Request, *chunks: bytes | None, end: bool = True) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        try:
            await response.prepare(request)
            for chunk in chunks:
                if chunk is None:
                    await self._until_gone(request)
                    return response
                self._note(request, chunk)
                await response.write(chunk)
        except (ConnectionError, asyncio.CancelledError):
            self.dropped.set()
            raise
        if end:
            await response.write_eof()
        return response
