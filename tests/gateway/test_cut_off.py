"""Requests that end before their answer does: their time is over, or their client leaves, in every phase."""

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

from coe.core import Prediction
from coe.experts.http.sse import EVENT_STREAM
from tests.fakes import Gateway, Response, WordRouter, gateway_of, registry_of
from tests.gateway.served import serving

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
EVENT = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
BODY = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "code"}]})
SOON = {"content-type": "application/json", "x-coe-timeout": "0.3"}
ONE = {"concurrent_requests": 1}


async def test_an_answer_that_does_not_begin_in_time_is_504_and_the_expert_stops() -> None:
    async with gateway_of(coder=asyncio.Event()) as gateway:
        response = await gateway.post(CHAT, BODY, headers=SOON)
    assert response.status == 504
    assert response.error["code"] == "deadline_exceeded"
    assert "within the request's timeout of 0.3 s" in response.error["message"]
    assert gateway.experts["coder"].cancelled
    assert (gateway.records[0].outcome, gateway.records[0].attempts) == ("deadline_exceeded", 1)
    assert response.headers["x-coe-attempts"] == "1"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_it_is_watched_stops_a_slow_expert(stream: bool) -> None:
    """The watch for a client that leaves begins WATCH_DELAY after the request, and must notice an earlier leave too."""
    async with gateway_of(coder=asyncio.Event()) as gateway:
        gateway.leave.set()  # behind the body, so before the expert is called
        await gateway.chat("code", stream=stream)
    assert gateway.experts["coder"].cancelled
    assert gateway.records[0].outcome == "aborted"


async def test_an_answer_that_does_not_end_in_time_ends_with_an_error_event() -> None:
    stream = orjson.dumps({**orjson.loads(BODY), "stream": True})
    async with gateway_of(coder=[EVENT, asyncio.Event()]) as gateway:
        response = await gateway.post(CHAT, stream, headers=SOON)
    assert response.status == 200
    assert response.headers["content-type"] == EVENT_STREAM
    assert response.chunks[0] == EVENT
    assert orjson.loads(response.chunks[1].removeprefix(b"data: "))["error"]["code"] == "deadline_exceeded"
    assert gateway.experts["coder"].replies[0].closed
    assert gateway.records[0].outcome == "deadline_exceeded"


async def test_the_wait_for_the_body_counts() -> None:
    async with gateway_of() as gateway:
        response = await gateway.post(CHAT, b'{"model"', unfinished=True, headers=SOON)
    assert response.error["code"] == "deadline_exceeded"


async def test_the_wait_for_a_permit_counts() -> None:
    async with gateway_of(registry_of(limits=ONE), coder=[EVENT, asyncio.Event()]) as gateway, busy(gateway):
        response = await gateway.post(CHAT, BODY, headers=SOON)
        assert gateway.services.admission.queued == 0
    assert response.error["code"] == "deadline_exceeded"


class busy:
    """Inside, the only permit is held by a stream of `coder`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __aenter__(self) -> None:
        stream = self._gateway.chat("code", stream=True)
        self._task = asyncio.ensure_future(stream)
        await self._gateway.first_chunk.wait()

    async def __aexit__(self, *_: object) -> None:
        self._gateway.leave.set()
        await self._task


class Gate:
    """Encoder passes of a WordRouter that wait until `open` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

        def predict(router: WordRouter, texts: Any, *, encode: bool = False) -> list[Prediction]:
            self.reached.set()
            self.open.wait(60)
            return [router._prediction(text, "predict") for text in texts]

        monkeypatch.setattr(WordRouter, "predict", predict)


async def test_a_client_that_leaves_during_the_encoder_pass_causes_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    async with gateway_of() as gateway:
        task = asyncio.ensure_future(gateway.chat("ponder code"))
        await asyncio.to_thread(gate.reached.wait, 60)
        gateway.leave.set()
        response: Response = await task
        gate.open.set()
    assert response.status == 0
    assert not gateway.experts["coder"].calls
    assert (gateway.records[0].outcome, gateway.records[0].attempts) == ("aborted", 0)


async def test_a_client_that_stops_reading_holds_up_the_expert_and_is_let_go(tmp_path: Path) -> None:
    async with serving(tmp_path, policy={"max_attempts": 1, "stream_idle_timeout": 1}) as served:
        before = served.workers[0].memory_info().rss
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(served.raw("floods", stream=True))
            await asyncio.wait_for(served.upstream.dropped.wait(), 60)
            (record,) = await served.records(1)
            assert record.outcome == "aborted"
            assert served.upstream.sent < 50_000_000
            assert served.workers[0].memory_info().rss - before < 30_000_000
