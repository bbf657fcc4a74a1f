"""What a server rejects and the client can do without is left out, and the request is sent again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from coe.core import Api, Call
from coe.errors import ExpertRejected
from coe.experts import build_experts
from coe.experts.http.client import Client
from tests.experts.fault_servers import COMPLETION, server
from tests.fakes import registry_of

pytestmark = pytest.mark.anyio
Refuse = Callable[[dict[str, Any]], dict[str, str] | None]
TOOLS = [{"type": "function", "name": "look", "parameters": {}}]
RENAMED = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."


class Sender:
    """Sends requests to an expert of chat whose server refuses a body with the error that `refuse` returns."""

    def __init__(self, expert: Any) -> None:
        self.expert = expert
        self.bodies: list[dict[str, Any]] = []
        self.dropped = set[str]()

    async def __call__(self, api: Api = "responses", **fields: Any) -> None:
        prompt: dict[str, Any] = {"input": "hi"} if api == "responses" else {"messages": []}
        self.dropped = set()
        call = Call({"model": "auto", **prompt, **fields}, False, 5, 5, api, dropped=self.dropped)
        reply = await self.expert.stream(call)
        await reply.aclose()


@asynccontextmanager
async def sending(refuse: Refuse, **declared: Any) -> AsyncIterator[Sender]:
    sender = Sender(None)

    async def answer(request: web.Request) -> web.StreamResponse:
        sender.bodies.append(body := await request.json())
        error = refuse(body)
        return web.json_response({"error": error}, status=400) if error else web.json_response(COMPLETION)

    async with server(answer) as root, Client() as session:
        spec = {"name": "clever", "model": "m", "runtime": "external", "base_url": f"{root}/v1", **declared}
        experts = build_experts(registry_of(experts=[spec], assignment={"general": "clever"}), {}, session=session)
        sender.expert = experts["clever"]
        yield sender


async def test_a_setting_that_a_server_rejects_is_left_out_of_that_request_alone_and_reported() -> None:
    """OpenAI's newer models reject `reasoning_effort` together with tools only."""

    def refuse(body: dict[str, Any]) -> dict[str, str] | None:
        rejects = "reasoning_effort" in body and "tools" in body
        return {"message": "Unrecognized request argument: reasoning_effort"} if rejects else None

    async with sending(refuse) as send:
        await send(reasoning={"effort": "low"}, tools=TOOLS)
        assert send.dropped == {"reasoning_effort"}
        await send(reasoning={"effort": "low"})
        assert send.dropped == set()
    assert [body.get("reasoning_effort") for body in send.bodies] == ["low", None, "low"]


async def test_a_server_of_the_newer_name_of_the_limit_gets_that_from_then_on() -> None:
    def refuse(body: dict[str, Any]) -> dict[str, str] | None:
        return {"message": RENAMED, "param": "max_tokens"} if "max_tokens" in body else None

    async with sending(refuse) as send:
        await send(max_output_tokens=7)
        await send("messages", max_tokens=8)
    limits = [(body.get("max_tokens"), body.get("max_completion_tokens")) for body in send.bodies]
    assert limits == [(7, None), (None, 7), (None, 8)]
    async with sending(lambda _: None, parameters={"max_completion_tokens": 9}) as send:
        await send(max_output_tokens=7)
    assert send.bodies[0]["max_completion_tokens"] == 7
    assert "max_tokens" not in send.bodies[0]


async def test_a_client_whose_text_a_server_quotes_changes_no_later_request() -> None:
    error = {"message": "bad content: 'reasoning_effort verbosity max_tokens max_completion_tokens'"}
    fields = {"reasoning": {"effort": "low"}, "text": {"verbosity": "low"}, "max_output_tokens": 7}
    refusing = True
    async with sending(lambda _: error if refusing else None) as send:
        with pytest.raises(ExpertRejected):
            await send(**fields)
        refusing = False
        await send(**fields)
    last = send.bodies[-1]
    assert (last["reasoning_effort"], last["verbosity"], last["max_tokens"]) == ("low", "low", 7)


async def test_a_refusal_counts_although_its_server_does_not_end_it() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=400)
        await response.prepare(request)
        await response.write(b'{"error":{"message":"too long","code":"context_length_exceeded"}}')
        await asyncio.Event().wait()
        return response

    async with server(answer) as root, Client() as session:
        spec = {"name": "clever", "model": "m", "runtime": "external", "base_url": f"{root}/v1"}
        experts = build_experts(registry_of(experts=[spec], assignment={"general": "clever"}), {}, session=session)
        with pytest.raises(ExpertRejected, match="too long") as refused:
            await experts["clever"].stream(Call({"model": "auto", "messages": []}, False, 5, 5))
    assert refused.value.upstream_code == "context_length_exceeded"
