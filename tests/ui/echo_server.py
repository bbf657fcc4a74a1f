"""An expert's server for the playground: one model repeats the prompt, one breaks off on request."""

from __future__ import annotations

import asyncio

import orjson
from aiohttp import web

from tests.experts.faulty_server import CHUNK, DONE, LAST, FaultyServer


class EchoServer(FaultyServer):
    """A FaultyServer whose model `echo` streams the last message back, in pieces of a thousand characters, and whose
    model `breaks` says one word, and an error once it `may_break`."""

    def __init__(self) -> None:
        super().__init__()
        self.may_break = asyncio.Event()

    async def _echo(self, request: web.Request, _: str) -> web.StreamResponse:
        text = self.seen[-1]["messages"][-1]["content"]
        chunks = [text[first : first + 1_000] for first in range(0, len(text), 1_000)]
        deltas = ({"choices": [{"delta": {"content": chunk}, "finish_reason": None}]} for chunk in chunks)
        return await self._events(request, *(b"data: %s\n\n" % orjson.dumps(delta) for delta in deltas), LAST, DONE)

    async def _breaks(self, request: web.Request, _: str) -> web.StreamResponse:
        response = await self._events(request, CHUNK % b"m", end=False)
        await self.may_break.wait()
        await response.write(b'data: {"error":{"message":"cuda died"}}\n\n')
        await response.write_eof()
        return response
