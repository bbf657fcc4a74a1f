"""Experts that answer by a function, in process and over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web

from coe.core import Call
from coe.measuring.probes import Probe
from tests.fakes import ScriptedReply

AnswerFunction = Callable[[str], str | Exception]
"""From the last message's text to an answer, or an error to raise."""


def completion(text: str, *, finish: str = "stop", written: int = 5) -> dict[str, Any]:
    """A chat completion with a text, which is billed as `written` tokens."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": written}}


def probe_of(text: str, **changes: Any) -> Probe:
    """A probe whose right answer is `right`."""
    usual = {
        "prompt_id": text,
        "messages": ({"role": "user", "content": text},),
        "prompt": text,
        "category": "general",
        "checker": "exact",
        "reference": "right",
        "tests": None,
        "tolerance": 1e-4,
        "digest": f"digest of {text}",
    }
    return Probe(**(usual | changes))


class AnsweringExpert:
    """Records its questions and the largest number of them at once."""

    def __init__(self, name: str, answer_to: AnswerFunction, *, finish: str = "stop") -> None:
        self.name = name
        self.questions: list[str] = []
        self.at_once = self.most_at_once = 0
        self._answer_to = answer_to
        self._finish = finish

    async def stream(self, call: Call) -> ScriptedReply:
        text = call.fields["messages"][-1]["content"]
        self.questions.append(text)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)  # let the others in
        self.at_once -= 1
        answer = self._answer_to(text)
        if isinstance(answer, Exception):
            raise answer
        return ScriptedReply([orjson.dumps(completion(answer, finish=self._finish))], stream=False)


class AnsweringServer:
    """Stands for external servers and for the gateway: answers each model by its function, or with an HTTP status.

    `hold` lets that many answers through and keeps the rest waiting until `release` is set.
    """

    def __init__(self, models: Mapping[str, Callable[[str], str | int]]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.release = asyncio.Event()
        self.release.set()
        self.let_through = 0
        self.port = 0
        self.models = dict(models)
        self.newer = set[str]()
        """Models that reject `max_tokens`, as OpenAI's newer ones do."""

    def hold(self, after: int) -> None:
        """From now on answer `after` more requests."""
        self.let_through = after
        self.release.clear()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[AnsweringServer]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_get("/health/live", self._live)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            self.release.set()
            await runner.cleanup()

    async def _live(self, _: web.Request) -> web.Response:
        return web.json_response({})

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["model"] in self.newer and "max_tokens" in body:
            message = "'max_tokens' is not supported, use 'max_completion_tokens'"
            return web.json_response({"error": {"message": message, "param": "max_tokens"}}, status=400)
        self.bodies.append(body)
        self.let_through -= 1
        if self.let_through < 0:
            await self.release.wait()
        answer = self.models[body["model"]](body["messages"][-1]["content"])
        if isinstance(answer, int):
            return web.json_response({"error": {"message": "because I say so"}}, status=answer)
        if body.get("stream"):  # the gateway streams non-streaming requests to `transformers serve`
            return web.Response(body=_events(completion(answer)), content_type="text/event-stream")
        return web.json_response(completion(answer))


def _events(answer: dict[str, Any]) -> bytes:
    """Return a completion as one event of a stream, and its end."""
    (choice,) = answer["choices"]
    delta = {"index": 0, "delta": choice["message"], "finish_reason": choice["finish_reason"]}
    chunk = answer | {"object": "chat.completion.chunk", "choices": [delta]}
    return b"data: " + orjson.dumps(chunk) + b"\n\ndata: [DONE]\n\n"
