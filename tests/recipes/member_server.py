"""A real HTTP server of one member: it answers every chat with the same words, plain or as a stream."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import orjson
from aiohttp import web

INPUT_TOKENS = 7


class MemberServer:
    """Streams one event per word, `pause` seconds apart, and ends once it `may_end`. A server that is `silent` never
    answers.

    `seen` counts its requests, `left` those whose client closed the connection before the end. `sent` has the bytes of
    every complete answer, `bodies` those of the requests.
    """

    def __init__(self, name: str, text: str, *, pause: float = 0.0, silent: bool = False) -> None:
        self.name = name
        self.words = text.split()
        self.pause = pause
        self.silent = silent
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.seen = self.left = 0
        self.sent: list[bytes] = []
        self.bodies: list[dict[str, Any]] = []
        self.url = ""

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def kill(self) -> None:
        """Close the listening socket and break off all connections."""
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.seen += 1
        body = await request.json()
        self.bodies.append(body)
        try:
            if self.silent:
                await asyncio.sleep(60)
            return await (self._stream(request) if body["stream"] else self._plain())
        except (asyncio.CancelledError, ConnectionError):
            self.left += 1
            raise

    async def _plain(self) -> web.Response:
        await asyncio.sleep(self.pause * len(self.words))
        message = {"role": "assistant", "content": " ".join(self.words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = orjson.dumps({"model": self.name, "choices": [choice], "usage": self.usage})
        self.sent.append(answer)
        return web.Response(body=answer, content_type="application/json")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        events = [self._event([_choice(f"{word} ")]) for word in self.words]
        events += [self._event([_choice(finish="stop")]), self._event([], usage=self.usage), b"data: [DONE]\n\n"]
        for number, event in enumerate(events):
            await asyncio.sleep(self.pause)
            if number == len(self.words):
                await self.may_end.wait()
            await response.write(event)
        self.sent.append(b"".join(events))
        with suppress(ConnectionError):
            await response.write_eof()
        return response

    @property
    def usage(self) -> dict[str, int]:
        return {"prompt_tokens": INPUT_TOKENS, "completion_tokens": len(self.words)}

    def _event(self, choices: list[object], **fields: object) -> bytes:
        return b"data: " + orjson.dumps({"model": self.name, "choices": choices, **fields}) + b"\n\n"


def _choice(content: str | None = None, *, finish: str | None = None) -> dict[str, object]:
    delta = {} if content is None else {"content": content}
    return {"index": 0, "delta": delta, "finish_reason": finish}
