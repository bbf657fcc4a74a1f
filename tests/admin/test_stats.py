"""`/v1/stats`: sums over all workers, and streams that end when they should."""

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
from gateway.endpoints.admin.counts import Counts, expert_stats
from gateway.endpoints.admin.stats import SharedSnapshot
from gateway.observability.metrics import Metrics
from tests.fakes import Gateway, Response, gateway_of, registry_of
from tests.gateway.served import serving

pytestmark = pytest.mark.anyio


async def stats_of(gateway: Gateway) -> Any:
    response = await gateway.post("/v1/stats", method="GET")
    assert response.status == 200
    return response.json


def events_of(response: Response) -> list[Any]:
    """The data of each event."""
    return [orjson.loads(event.removeprefix(b"data: ")) for event in response.body.split(b"\n\n") if event]


@asynccontextmanager
async def listening(gateway: Gateway, count: int = 1) -> AsyncIterator[list[Response]]:
    """Open `count` listeners, and wait until each has its first event."""
    into = [Response() for _ in range(count)]
    tasks = [asyncio.create_task(gateway.post("/v1/stats/stream", method="GET", into=response)) for response in into]
    try:
        async with asyncio.timeout(60):
            while not all(response.chunks for response in into):
                await asyncio.sleep(0)
        yield into
    finally:
        gateway.leave.set()
        await asyncio.gather(*tasks)


async def test_requests_are_counted_by_category_expert_outcome_and_reason() -> None:
    failing = ExpertUnavailable("gone", expert="painter")
    async with gateway_of(painter=failing) as gateway:
        for text in ("some code", "some code", "some art", "general words"):
            await gateway.chat(text)
        await gateway.chat("art", model="painter")
        await gateway.chat("art", model="nobody")
        found = await stats_of(gateway)
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


async def test_before_the_first_request_all_numbers_are_present_and_zero() -> None:
    async with gateway_of() as gateway:
        found = await stats_of(gateway)
    assert found["requests"] == {"total": 0, "apis": {}, "outcomes": {}, "reasons": {}, "flows": {}}
    assert [expert["id"] for expert in found["experts"]] == ["coder", "painter", "generalist"]
    assert all(sum(expert["first_byte"]) == 0 for expert in found["experts"])
    assert found["serving"][0]["router"] == "words"
    assert found["warnings"] == []


async def test_experts_under_residency_have_tier_and_waiting_requests() -> None:
    metrics = Metrics()

    def gauge(name: str, number: float) -> None:
        metrics.gauges(name, "", ("expert",), lambda: {("coder",): number})

    gauge("coe_expert_tier", 2)
    gauge("coe_expert_waiting", 3)
    gauge("coe_expert_switches", 5)
    found = expert_stats(Counts(await metrics.families()), registry_of())
    residency = {name: found["coder"][name] for name in ("tier", "waiting", "switches")}
    assert residency == {"tier": "switching", "waiting": 3, "switches": 5}
    assert "tier" not in found["painter"]


async def test_a_stream_begins_at_once_and_ends_after_the_requested_events() -> None:
    async with gateway_of() as gateway:
        response = await gateway.post("/v1/stats/stream", method="GET", query="events=1")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert [event["object"] for event in events_of(response)] == ["stats"]


@pytest.mark.parametrize("query", ["interval=0", "interval=61", "interval=soon", "events=0", "speed=9"])
async def test_a_wrong_stream_query_is_refused(query: str) -> None:
    async with gateway_of() as gateway:
        response = await gateway.post("/v1/stats/stream", method="GET", query=query)
        assert response.status == 400
        assert response.error["param"] == query.partition("=")[0]


async def test_open_streams_are_limited_and_a_closed_one_frees_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "MAX_LISTENERS", 2)
    async with gateway_of() as gateway:
        async with listening(gateway, 2):
            refused = await gateway.post("/v1/stats/stream", method="GET", query="events=1")
            assert (refused.status, refused.error["code"]) == (429, "overloaded")
            assert "retry-after" in refused.headers
        gateway.leave.clear()
        assert (await gateway.post("/v1/stats/stream", method="GET", query="events=1")).status == 200


async def test_concurrent_readers_share_one_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    async def take() -> bytes:
        taken.append(1)
        await asyncio.sleep(0)
        return b"%d" % len(taken)

    snapshot, due = SharedSnapshot(take), asyncio.get_running_loop().time()
    assert await asyncio.gather(*(snapshot.since(due) for _ in range(9))) == [b"1"] * 9
    assert await snapshot.since(due) == b"1"
    while (later := asyncio.get_running_loop().time()) <= due:
        await asyncio.sleep(0)
    assert await snapshot.since(later) == b"2"


async def test_a_failed_snapshot_fails_its_readers_and_not_the_next() -> None:
    broken = [True]

    async def take() -> bytes:
        await asyncio.sleep(0)
        if broken:
            raise OSError("gone")
        return b"well"

    snapshot, due = SharedSnapshot(take), asyncio.get_running_loop().time()
    failures = await asyncio.gather(snapshot.since(due), snapshot.since(due), return_exceptions=True)
    assert [type(failure) for failure in failures] == [OSError, OSError]
    broken.clear()
    assert await snapshot.since(due) == b"well"


async def test_a_draining_process_ends_its_streams_and_refuses_new_ones() -> None:
    async with gateway_of() as gateway:
        streaming = asyncio.create_task(gateway.post("/v1/stats/stream", method="GET"))
        await gateway.first_chunk.wait()
        gateway.services.leaving = True
        response = await streaming
        assert response.status == 200
        refused = await gateway.post("/v1/stats/stream", method="GET")
        assert (refused.status, refused.error["code"]) == (503, "draining")


async def test_a_client_that_stops_reading_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "SEND_SECONDS", 0.01)
    never, closed = asyncio.Event(), asyncio.Event()

    async def events() -> Any:
        yield b"1"

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await never.wait()

    async def receive() -> Any:
        await never.wait()

    async with asyncio.timeout(60):
        await stats.EventStream(events(), on_close=closed.set)({}, receive, send)
    assert closed.is_set()


async def test_streams_end_when_their_gateway_stops_and_do_not_delay_it(tmp_path: Path) -> None:
    async with serving(tmp_path, environ={"COE_WORKERS": "2"}) as served:
        responses = [await served.client.get(f"{served.url}/v1/stats/stream?interval=60") for _ in range(4)]
        for response in responses:
            assert (await response.content.readuntil(b"\n\n")).startswith(b"data: {")
        served.process.terminate()
        async with asyncio.timeout(60):
            for response in responses:
                assert await response.content.read() == b""
            assert await served.process.wait() == 0
