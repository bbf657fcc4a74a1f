"""Memory for what waits to be stored: tenants share it, only what is stored counts, and a shortage is reported."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest

from gateway.request import stored_step
from gateway.request.stored_step import StoredStep
from gateway.stored_responses import conversation
from tests.access.samples import key_of
from tests.experts.translation.chat_expert import ChatReply
from tests.gateway.two_keys import bearer
from tests.stored_responses.served import Served, declared, served
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

MEMORY, LONG = 60_000, 11_000
KEYS = [key_of("alice"), key_of("mallory"), key_of("admin", scopes={"admin", "chat"})]


@pytest.fixture
def held_back(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Answers to inputs with the word `long` arrive when this is set. The memory is small."""
    arrive, chunks = asyncio.Event(), ChatReply.chunks

    async def waiting(reply: ChatReply) -> AsyncGenerator[bytes, None]:
        async for chunk in chunks(reply):
            if not arrive.is_set() and reply.media_type == "text/event-stream":
                await arrive.wait()
            yield chunk

    monkeypatch.setattr(ChatReply, "chunks", waiting)
    monkeypatch.setattr(stored_step, "MAX_HELD_BYTES", MEMORY)
    return arrive


@asynccontextmanager
async def streaming(one: Served, arrive: asyncio.Event, count: int, **fields: Any) -> AsyncIterator[None]:
    """Mallory's streams, which have begun and end with the block."""
    body = orjson.dumps({"model": "generalist", "input": "hi", "stream": True, **fields})
    before = len(one.chat.replies)
    streams = [one.gateway.post("/v1/responses", body, headers=bearer("mallory")) for _ in range(count)]
    tasks = [asyncio.ensure_future(stream) for stream in streams]
    await wait_until(lambda: len(one.chat.replies) == before + count)
    try:
        yield
    finally:
        arrive.set()
        assert {response.status for response in await asyncio.gather(*tasks)} == {200}


def with_keys() -> Any:
    return declared(access={"keys": [key.model_dump(mode="json") for key in KEYS]})


async def metric(one: Served, name: str) -> str:
    page = await one.gateway.post("/metrics", method="GET", headers=bearer("admin"))
    return next((line.split()[1] for line in page.body.decode().splitlines() if line.startswith(name)), "")


async def test_one_key_leaves_memory_in_which_the_answers_of_others_wait_to_be_stored(
    tmp_path: Path, held_back: asyncio.Event
) -> None:
    async with served(tmp_path, with_keys()) as one, streaming(one, held_back, 5, input="x" * LONG):
        alice = one.client.with_options(api_key="alice")
        for _ in range(3):
            answer = await alice.responses.create(model="generalist", input="y" * LONG)
            assert (await alice.responses.retrieve(answer.id)).id == answer.id


async def test_fields_that_are_not_stored_do_not_count(tmp_path: Path, held_back: asyncio.Event) -> None:
    async with served(tmp_path, with_keys()) as one:
        unknown = {"unknown": "x" * (MEMORY // 4)}
        async with streaming(one, held_back, 5, **unknown):
            mallory = one.client.with_options(api_key="mallory")
            answer = await mallory.responses.create(model="generalist", input="hi", extra_body=unknown)
            assert (await mallory.responses.retrieve(answer.id)).id == answer.id


async def test_answers_that_find_no_memory_are_counted_and_the_shortage_and_its_end_are_logged_once(
    tmp_path: Path, held_back: asyncio.Event, caplog: pytest.LogCaptureFixture
) -> None:
    def logged() -> list[str]:
        return [line for line in caplog.messages if line.startswith("stored responses: ")]

    async with served(tmp_path, with_keys()) as one:
        assert await metric(one, "coe_responses_not_stored_total") == ""
        async with streaming(one, held_back, 5, input="x" * LONG):
            assert await metric(one, 'coe_responses_not_stored_total{reason="memory"}') == "2.0"
            (began,) = logged()
            assert "mallory" in began
        assert "works again" in logged()[1]
        mallory = one.client.with_options(api_key="mallory")
        answer = await mallory.responses.create(model="generalist", input="y" * LONG)
        assert (await mallory.responses.retrieve(answer.id)).id == answer.id
        assert len(logged()) == 2


async def test_the_gauge_is_1_while_a_share_is_used_up(
    tmp_path: Path, held_back: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[StoredStep] = []
    continued = StoredStep.continued

    async def noting(step: StoredStep, *args: Any, **kwargs: Any) -> Any:
        steps.append(step)
        return await continued(step, *args, **kwargs)

    monkeypatch.setattr(StoredStep, "continued", noting)
    async with served(tmp_path, with_keys()) as one:
        async with streaming(one, held_back, 3, input="x" * LONG):
            assert not steps[0].degraded
            async with streaming(one, held_back, 1, input="x" * LONG):
                assert steps[0].degraded
        assert not steps[0].degraded


@pytest.mark.parametrize("long", ["input", "answer", "answer in one piece"])
async def test_what_is_too_long_to_be_stored_is_counted(
    tmp_path: Path, long: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "MAX_ENTRY_BYTES", 2_000)
    async with served(tmp_path, with_keys(), {"content": "x" * (2_000 if long != "input" else 2)}) as one:
        alice = one.client.with_options(api_key="alice")
        text = "x" * 2_000 if long == "input" else "x"
        if long == "answer":
            body = orjson.dumps({"model": "generalist", "input": text, "stream": True})
            assert (await one.gateway.post("/v1/responses", body, headers=bearer("alice"))).status == 200
        else:
            answer = await alice.responses.create(model="generalist", input=text)
            with pytest.raises(openai.NotFoundError):
                await alice.responses.retrieve(answer.id)
        assert await metric(one, 'coe_responses_not_stored_total{reason="size"}') == "1.0"


async def test_a_store_that_is_away_is_counted(tmp_path: Path) -> None:
    async with served(tmp_path, declared("redis://127.0.0.1:1/0")) as one:
        await one.client.responses.create(model="auto", input="hi")
        page = (await one.gateway.post("/metrics", method="GET")).body
        assert b'coe_responses_not_stored_total{reason="store"} 1' in page
