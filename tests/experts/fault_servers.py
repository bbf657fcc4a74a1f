"""Small real servers with one fault each, as those of providers show it."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from coe.fleet.specs import free_port

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

COMPLETION = {"choices": [{"message": {"role": "assistant", "content": "ok"}}], "usage": {"completion_tokens": 1}}


def refusing(status: int, body: Any = None, *, headers: dict[str, str] | None = None) -> Answer:
    """Answer everything with this status."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response({} if body is None else body, status=status, headers=headers)

    return answer


async def answering(_: web.Request) -> web.StreamResponse:
    return web.json_response(COMPLETION)


async def silent(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def hanging_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def serving(*models: str, key: str = "") -> Answer:
    """Answer as a server of OpenAI's API that has these models, under /v1 only, for the `key` if there is one."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if key and request.headers.get("authorization") != f"Bearer {key}":
            sent = request.headers.get("authorization", "")
            return web.json_response({"error": {"message": f"Incorrect API key provided: {sent}"}}, status=401)
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": model} for model in models]})
        if request.path != "/v1/chat/completions":
            return web.json_response({"detail": "Not Found"}, status=404)
        model = (await request.json())["model"]
        if model not in models:
            reported = {"message": f"The model `{model}` does not exist.", "code": "model_not_found"}
            return web.json_response({"error": reported}, status=404)
        return web.json_response(COMPLETION)

    return answer


@asynccontextmanager
async def server(answer: Answer, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """The server's root, without a path."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        yield f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def servers(answers: Sequence[Answer]) -> AsyncIterator[list[str]]:
    """The roots of several servers."""
    async with server(answers[0]) as first:
        if len(answers) == 1:
            yield [first]
        else:
            async with servers(answers[1:]) as others:
                yield [first, *others]


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that no authority vouches for, and its key, made with openssl."""
    key, made = folder / "key.pem", folder / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=127.0.0.1"
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", made]
    subprocess.run([*command.split(), *more], check=True, capture_output=True)
    return made, key


def closed_port() -> str:
    """The root of an address at which nothing listens; no other test of the machine chooses its port meanwhile."""
    return f"http://127.0.0.1:{free_port()}"
