"""The numbers of now: what they add up to, and streams of them that end when they should."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from coe.errors import ExpertUnavailable
from gateway.endpoints.admin import stats
from gateway.endpoints.admin.counts import Counts, experts_told
from gateway.endpoints.admin.stats import SharedSnapshot
from gateway.observability.metrics import Metrics
from tests.fakes import Gateway, Response, gateway_of, registry_of
from tests.gateway.served import serving

pytestmark = pytest.mark.anyio


async def now(gateway: Gateway) -> Any:
    response = await gateway.post("/v1/stats", method="GET")
    assert response.status == 200
    return response.json


def told(response: Response) -> list[Any]:
    """The data of each event."""
    return [orjson.loads(event.removeprefix(b"data: ")) for event in response.body.split(b"\n\n") if event]


@asynccontextmanager
async def listening(gateway: Gateway, count: int = 1) -> AsyncIterator[list[Response]]:
    """So many listeners, each with its first event."""
    into = [Response() for _ in range(count)]
    tasks = [asyncio.create_task(gateway.post("/v1/stats/stream", method="GET", into=response)) for response in into]
    try:
        async with asyncio.timeout(10):
            while not all(response.chunks for response in into):
                await asyncio.sleep(0)
        yield into
    finally:
        gateway.leave.set()
        await asyncio.gather(*tasks)


async def test_requests_are_told_by_category_expert_outcome_and_reason() -> None:
    failing = ExpertUnavailable("gone", expert="painter")
    async with gateway_of(painter=failing) as gateway:
        for text in ("some code", "some code", "some art", "general words"):
            await gateway.chat(text)
        await gateway.chat("art", model="painter")
        await gateway.chat("art", model="nobody")
        found = await now(gateway)
    requests, experts = found["requests"], {expert["id"]: expert for expert in found["experts"]}
    assert found["categories"] == ["code", "art", "general"]
    assert requests["total"] == 6
    assert requests["flows"]["code"] == {"coder": 2}
    assert sum(count for row in requests["flows"].values() for count in row.values()) == 5
    assert (requests["reasons"]["fallback"], requests["reasons"]["pinned"]) == (1, 1)
    assert requests["outcomes"] == {"ok": 4, "expert_unavailable": 1, "model_not_found": 1}
    assert experts["painter"]["fallbacks"] == 1
    assert experts["painter"]["outcomes"] == {"expert_unavailable": 1}
    assert experts["coder"]["tokens"] == {"input": 6, "output": 10}
    assert sum(experts["coder"]["first_byte"]) == 2
    assert sum(found["routing"]["counts"]) == 5
    assert len(found["routing"]["counts"]) == len(found["routing"]["bounds"]) + 1
    assert [worker["worker"] for worker in found["workers"]] == [0]


async def test_of_a_gateway_nobody_asked_yet_everything_is_there_and_zero() -> None:
    async with gateway_of() as gateway:
        found = await now(gateway)
    assert found["requests"] == {"total": 0, "apis": {}, "outcomes": {}, "reasons": {}, "flows": {}}
    assert [expert["id"] for expert in found["experts"]] == ["coder", "painter", "generalist"]
    assert all(sum(expert["first_byte"]) == 0 for expert in found["experts"])
    assert found["serving"][0]["router"] == "words"
    assert found["troubles"] == []


async def test_turns_are_told_of_experts_that_take_them() -> None:
    metrics = Metrics()

    def say(name: str, number: float) -> None:
        metrics.gauges(name, "", ("expert",), lambda: {("coder",): number})

    say("coe_expert_tier", 2)
    say("coe_expert_held", 3)
    say("coe_expert_switches", 5)
    found = experts_told(Counts(await metrics.families()), registry_of())
    turns = {name: found["coder"][name] for name in ("tier", "held", "switches")}
    assert turns == {"tier": "switching", "held": 3, "switches": 5}
    assert "tier" not in found["painter"]


async def test_a_stream_tells_at_once_and_ends_after_the_events_asked_for() -> None:
    async with gateway_of() as gateway:
        response = await gateway.post("/v1/stats/stream", method="GET", query="events=1")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert [event["object"] for event in told(response)] == ["stats"]


@pytest.mark.parametrize("query", ["interval=0", "interval=61", "interval=soon", "events=0", "speed=9"])
async def test_a_stream_that_cannot_be_meant_is_refused(query: str) -> None:
    async with gateway_of() as gateway:
        response = await gateway.post("/v1/stats/stream", method="GET", query=query)
        assert response.status == 400
        assert response.error["param"] == query.partition("=")[0]


async def test_so_many_may_listen_and_who_leaves_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "LISTENERS", 2)
    async with gateway_of() as gateway:
        async with listening(gateway, 2):
            refused = await gateway.post("/v1/stats/stream", method="GET", query="events=1")
            assert (refused.status, refused.error["code"]) == (429, "overloaded")
            assert "retry-after" in refused.headers
        gateway.leave.clear()
        assert (await gateway.post("/v1/stats/stream", method="GET", query="events=1")).status == 200


async def test_all_who_listen_share_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    async def look() -> bytes:
        taken.append(1)
        await asyncio.sleep(0)
        return b"%d" % len(taken)

    looks, due = SharedSnapshot(look), asyncio.get_running_loop().time()
    assert await asyncio.gather(*(looks.since(due) for _ in range(9))) == [b"1"] * 9
    assert await looks.since(due) == b"1"
    while (later := asyncio.get_running_loop().time()) <= due:
        await asyncio.sleep(0)
    assert await looks.since(later) == b"2"


async def test_a_look_that_fails_fails_those_who_wait_and_not_the_next() -> None:
    broken = [True]

    async def look() -> bytes:
        await asyncio.sleep(0)
        if broken:
            raise OSError("gone")
        return b"well"

    looks, due = SharedSnapshot(look), asyncio.get_running_loop().time()
    failures = await asyncio.gather(looks.since(due), looks.since(due), return_exceptions=True)
    assert [type(failure) for failure in failures] == [OSError, OSError]
    broken.clear()
    assert await looks.since(due) == b"well"


async def test_the_stream_ends_when_the_process_is_about_to_and_begins_no_more() -> None:
    async with gateway_of() as gateway:
        streaming = asyncio.create_task(gateway.post("/v1/stats/stream", method="GET"))
        await gateway.first_chunk.wait()
        gateway.serving_state.leaving = True
        response = await streaming
        assert response.status == 200
        refused = await gateway.post("/v1/stats/stream", method="GET")
        assert (refused.status, refused.error["code"]) == (503, "draining")


async def test_who_does_not_read_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "STALLED", 0.01)
    never, over = asyncio.Event(), asyncio.Event()

    async def told() -> Any:
        yield b"1"

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await never.wait()

    async def receive() -> Any:
        await never.wait()

    async with asyncio.timeout(10):
        await stats.EventStream(told(), over=over.set)({}, receive, send)
    assert over.is_set()


async def test_a_served_stream_ends_when_its_gateway_is_told_to_stop_and_holds_it_up_no_longer(tmp_path: Path) -> None:
    async with serving(tmp_path, environ={"COE_WORKERS": "2"}) as served:
        responses = [await served.client.get(f"{served.url}/v1/stats/stream?interval=60") for _ in range(4)]
        for response in responses:
            assert (await response.content.readuntil(b"\n\n")).startswith(b"data: {")
        served.process.terminate()
        async with asyncio.timeout(15):
            for response in responses:
                assert await response.content.read() == b""
            assert await served.process.wait() == 0
