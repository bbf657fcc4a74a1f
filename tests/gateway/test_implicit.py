"""Implicit feedback: a regenerated answer and an abandoned stream are recorded as such."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest

from coe.errors import StoreError
from coe.records import open_log_and_feedback
from coe.records.feedback import Feedback
from gateway.observability import observers
from tests.access.samples import key_of
from tests.fakes import Gateway, gateway_of, registry_of
from tests.gateway.served import serving

pytestmark = pytest.mark.anyio

LONG = "write me some code that draws a small blue house"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observers, "MIN_REGENERATION_SECONDS", 0.0)


async def send_chat(gateway: Gateway, text: str, *, key: str | None = None, session: str | None = None) -> str:
    """The request's id."""
    headers = {"content-type": "application/json"}
    headers |= {"x-api-key": key} if key else {}
    headers |= {"x-session-id": session} if session else {}
    body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": text}]})
    return (await gateway.post("/v1/chat/completions", body, headers=headers)).headers["x-request-id"]


async def reported(gateway: Gateway, count: int) -> list[tuple[str, str]]:
    """Wait for `count` signals, and return the kind and the request of each."""
    async with asyncio.timeout(60):
        while len(gateway.log.events) < count:
            await asyncio.sleep(0.001)
    return [(event.kind, event.request_id) for event in gateway.log.events]


async def test_a_repeated_conversation_reports_the_earlier_answer_as_regenerated() -> None:
    async with gateway_of() as gateway:
        first, second = await send_chat(gateway, LONG), await send_chat(gateway, LONG)
        await send_chat(gateway, LONG + ", please")
        assert await reported(gateway, 1) == [("regenerated", first)]
        (event,) = gateway.log.events
        assert event.event_id == f"regenerated:{second}"
        page = (await gateway.post("/metrics", method="GET")).body
    assert b'coe_feedback_total{kind="regenerated"} 1' in page


async def test_a_greeting_is_the_same_within_a_session_only() -> None:
    async with gateway_of() as gateway:
        await send_chat(gateway, "hello")
        await send_chat(gateway, "hello")
        first = await send_chat(gateway, "hello", session="s")
        await send_chat(gateway, "hello", session="other")
        await send_chat(gateway, "hello", session="s")
        assert await reported(gateway, 1) == [("regenerated", first)]


async def test_another_tenants_same_words_are_another_conversation() -> None:
    keys = [key_of(name).model_dump(mode="json") for name in ("alice", "bob")]
    async with gateway_of(registry_of(access={"keys": keys})) as gateway:
        first = await send_chat(gateway, LONG, key="alice")
        await send_chat(gateway, LONG, key="bob")
        await send_chat(gateway, LONG, key="alice")
        assert await reported(gateway, 1) == [("regenerated", first)]
        (event,) = gateway.log.events
    assert (event.tenant, event.key) == ("alice", "alice")


async def test_a_program_that_repeats_its_request_is_reported_a_few_times_only() -> None:
    async with gateway_of() as gateway:
        asked = [await send_chat(gateway, LONG) for _ in range(8)]
    assert [event.request_id for event in gateway.log.events] == asked[:3]


async def test_what_comes_too_soon_or_too_late_is_no_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    async with gateway_of() as gateway:
        await send_chat(gateway, LONG)
        monkeypatch.setattr(observers, "MIN_REGENERATION_SECONDS", 60.0)
        await send_chat(gateway, LONG)
        monkeypatch.setattr(observers, "MIN_REGENERATION_SECONDS", 0.0)
        monkeypatch.setattr(observers, "MAX_REGENERATION_SECONDS", -1.0)
        await send_chat(gateway, LONG)
    assert gateway.log.events == []


async def test_a_request_that_failed_may_be_sent_again() -> None:
    failing = StoreError("not an expert's error")
    async with gateway_of(coder=failing) as gateway:
        for _ in range(2):
            await send_chat(gateway, LONG)
    assert gateway.log.events == []


async def test_a_stream_left_in_the_middle_is_abandoned_and_one_not_begun_is_not() -> None:
    waits = asyncio.Event()
    async with gateway_of(coder=(b"data: 1\n\n", waits), painter=waits) as gateway:
        for text in ("code", "art"):
            gateway.leave.clear()
            asked = asyncio.create_task(gateway.chat(text, stream=True))
            if text == "code":
                await gateway.first_chunk.wait()
            gateway.leave.set()
            await asked
        left = gateway.records[0].request_id
        assert await reported(gateway, 1) == [("abandoned", left)]
    assert len(gateway.log.events) == 1


async def test_signals_wait_while_the_log_is_away() -> None:
    async with gateway_of() as gateway:
        gateway.log.fails = StoreError("away")
        asked = [await send_chat(gateway, LONG) for _ in range(4)]
        await asyncio.wait_for(gateway.log.asked.wait(), 60)
        gateway.log.fails = None
    assert [event.request_id for event in gateway.log.events] == asked[:3]


async def test_a_real_client_that_leaves_mid_stream_leaves_a_signal(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        async with served.send_chat("stalls", stream=True) as response:
            request_id = response.headers["x-request-id"]
            await response.content.readuntil(b"\n\n")
            response.close()
        log = open_log_and_feedback("sqlite:///routing-log.sqlite", base=tmp_path / ".coe")[1]
        events: tuple[Feedback, ...] = ()
        async with asyncio.timeout(60):
            while not events:
                await asyncio.sleep(0.05)
                events = (await log.read()).events
        await log.aclose()
    assert [(event.kind, event.request_id) for event in events] == [("abandoned", request_id)]
