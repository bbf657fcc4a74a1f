"""Implicit feedback: a regenerated answer and an abandoned stream are recorded as such."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from gateway.observability import observers
from tests.fakes import Gateway, gateway_of

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
