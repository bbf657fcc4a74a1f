"""One conversation with two servers that refuse ids and encrypted reasoning that they did not write."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from coe.experts.factory import build_experts
from coe.experts.http.client import Client
from tests.fakes import Gateway, Response, gateway_of, registry_of

pytestmark = pytest.mark.anyio
PATH = "/v1/responses"
Item = dict[str, Any]


class StrictServer:
    """Calls a tool for each message of the user, and answers once it has the result. It refuses every id, reference and
    encrypted content that is not its own, with `status`, and everything that has a forbidden text."""

    def __init__(self, name: str, status: int) -> None:
        self.name, self.status = name, status
        self.known: set[str] = set()
        self.accepted: list[list[Item]] = []
        self.refused = 0
        self._numbers = itertools.count(1)
        self.url = ""

    async def start(self, stack: AsyncExitStack) -> None:
        app = web.Application()
        app.router.add_post(PATH, self._respond)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        items = [{"role": "user", "content": body["input"]}] if isinstance(body["input"], str) else body["input"]
        marks = [item[field] for item in items for field in ("id", "encrypted_content") if item.get(field)]
        if "previous_response_id" in body or not self.known.issuperset(marks) or "forbidden" in str(items[-1]):
            self.refused += 1
            return web.json_response({"error": {"message": "Item not found.", "type": "x"}}, status=self.status)
        self.accepted.append(items)
        answer = {"id": self._new("resp"), "object": "response", "status": "completed", "model": "m"}
        answer |= {"output": self._output(items), "previous_response_id": None}
        if not body.get("stream"):
            return web.json_response(answer)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for kind in ("created", "completed"):
            event = orjson.dumps({"type": f"response.{kind}", "response": answer}).decode()
            await response.write(f"event: response.{kind}\ndata: {event}\n\n".encode())
        return response

    def _output(self, items: list[Item]) -> list[Item]:
        if items[-1].get("type") == "function_call_output":
            text = [{"type": "output_text", "text": f"said by {self.name}", "annotations": []}]
            return [{"type": "message", "id": self._new("msg"), "role": "assistant", "content": text}]
        return [
            {"type": "reasoning", "id": self._new("rs"), "summary": [], "encrypted_content": self._new("gAAA")},
            {"type": "web_search_call", "id": self._new("ws"), "status": "completed"},
            {"type": "function_call", "id": self._new("fc"), "call_id": "call_1", "name": "look", "arguments": "{}"},
        ]

    def _new(self, prefix: str) -> str:
        self.known.add(name := f"{prefix}_{self.name}{next(self._numbers)}")
        return name


@asynccontextmanager
async def two_servers(folder: Path, status: int) -> AsyncIterator[tuple[Gateway, StrictServer, StrictServer]]:
    async with AsyncExitStack() as stack:
        servers = [StrictServer(name, status) for name in ("coder", "painter")]
        for server in servers:
            await server.start(stack)
        shared = {"model": "m", "runtime": "external", "apis": ["chat", "responses"], "capabilities": ["tools"]}
        experts = [{"name": server.name, "base_url": server.url, **shared} for server in servers]
        registry = registry_of(experts=[*experts, {"name": "generalist", "base_url": "http://127.0.0.1:9", **shared}])
        session = await stack.enter_async_context(Client())
        real = build_experts(registry, {}, session=session)
        gateway = await stack.enter_async_context(gateway_of(registry, stored=folder, real_experts=real))
        yield gateway, servers[0], servers[1]


async def respond(gateway: Gateway, model: str, items: Any, *, stream: bool, **fields: Any) -> tuple[Response, Item]:
    tools = [{"type": "function", "name": "look", "parameters": {}}]
    body = {"model": model, "input": items, "stream": stream, "tools": tools, **fields}
    response = await gateway.post(PATH, orjson.dumps(body))
    if not stream or response.status != 200:
        return response, response.json
    events = [orjson.loads(line[6:]) for line in response.body.split(b"\n") if line.startswith(b"data: {")]
    return response, events[-1]["response"]


def result() -> Item:
    return {"type": "function_call_output", "call_id": "call_1", "output": "42"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_sends_the_items_back_changes_the_server_at_every_step(
    tmp_path: Path, stream: bool
) -> None:
    async with two_servers(tmp_path, 404) as (gateway, coder, painter):
        history: list[Item] = []
        for turn in range(3):
            history.append({"role": "user", "content": f"question {turn}"})
            for model in ("coder", "painter"):  # the second one gets the open call of the first
                response, answer = await respond(gateway, model, history, stream=stream, store=False)
                assert (response.status, response.headers["x-coe-expert"]) == (200, model)
                history += answer["output"]
                if answer["output"][-1]["type"] == "function_call":
                    history.append(result())
        last = painter.accepted[-1]
        assert [one["content"] for one in last if one.get("role") == "user"] == [f"question {n}" for n in range(3)]
        assert sum(one.get("type") == "function_call" for one in last) == 3
        assert sum(one.get("role") == "assistant" for one in last) == 2
        assert (coder.refused, painter.refused) == (2, 3)  # each server, once for what the other one wrote since
        assert gateway.records[1].dropped == ("reasoning", "web_search_call")
        assert gateway.records[0].dropped == ()


@pytest.mark.parametrize("stream", [False, True])
async def test_stored_answers_and_references_move_between_servers(tmp_path: Path, stream: bool) -> None:
    async with two_servers(tmp_path, 400) as (gateway, coder, painter):
        _, first = await respond(gateway, "coder", "question", stream=stream)
        response, second = await respond(
            gateway, "painter", [result()], stream=stream, previous_response_id=first["id"]
        )
        assert (response.status, second["previous_response_id"]) == (200, first["id"])
        more = [{"role": "user", "content": "more"}]
        _, third = await respond(gateway, "coder", more, stream=stream, previous_response_id=second["id"])
        by_reference = [{"type": "item_reference", "id": item["id"]} for item in third["output"]]
        response, _ = await respond(gateway, "painter", [*more, *by_reference, result()], stream=stream)
        assert response.status == 200
        assert (coder.refused, painter.refused) == (1, 2)
        assert [one.get("type") for one in painter.accepted[-1]] == [None, "function_call", "function_call_output"]


async def test_a_request_that_is_wrong_for_another_reason_gets_the_server_s_error(tmp_path: Path) -> None:
    async with two_servers(tmp_path, 400) as (gateway, _, painter):
        _, answer = await respond(gateway, "coder", "question", stream=False)
        items = [{"role": "user", "content": "question"}, *answer["output"], result()]
        wrong = [*items, {"role": "user", "content": "forbidden"}]
        response, error = await respond(gateway, "painter", wrong, stream=False)
        assert (response.status, error["error"]["code"]) == (400, "expert_rejected")
        assert painter.refused == 2
        await respond(gateway, "painter", items, stream=False)
        assert painter.refused == 3  # nothing was learned from the failure
        plain, _ = await respond(gateway, "painter", "forbidden", stream=False)
        assert (plain.status, painter.refused) == (400, 4)  # not sent again: it has no items of a server
