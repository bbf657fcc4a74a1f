"""The gateway in several processes: one page of metrics, one form of log, traces that reach the expert."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from tests.gateway.served import Served, serving
from tests.observability.collector import collecting
from tests.observability.pages import samples

pytestmark = pytest.mark.anyio

CANARY = "canary-text"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


async def send_chat(served: Served, count: int) -> None:
    """Each over a connection of its own, so that every worker gets some."""
    body = {"model": "auto", "messages": [{"role": "user", "content": CANARY}]}
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "connection": "close"}
    for _ in range(count):
        async with served.client.post(f"{served.url}/v1/chat/completions", json=body, headers=headers) as response:
            assert response.status == 200


async def shown(served: Served) -> tuple[float, set[str]]:
    """Return the numbers of requests and workers on the page of any worker."""
    async with served.client.get(f"{served.url}/metrics", headers={"connection": "close"}) as response:
        found = samples(await response.read())
    workers = {dict(labels)["worker"] for name, labels in found if name == "process_open_fds"}
    return sum(value for (name, _), value in found.items() if name == "coe_requests_total"), workers


async def test_any_worker_shows_the_sum_and_a_killed_one_takes_nothing_away(tmp_path: Path) -> None:
    async with serving(tmp_path, environ={"COE_WORKERS": "2"}) as served:
        while len((await shown(served))[1]) < 2:
            await asyncio.sleep(0.02)
        await send_chat(served, 30)
        assert {total for total, _ in [await shown(served) for _ in range(10)]} == {30}
        killed = served.workers[0]
        killed.kill()
        while killed.pid in [worker.pid for worker in served.workers] or len((await _shown(served))[1]) < 2:
            await asyncio.sleep(0.02)
        assert (await shown(served))[0] == 30
        await send_chat(served, 10)
        assert {total for total, _ in [await shown(served) for _ in range(10)]} == {40}


async def _shown(served: Served) -> tuple[float, set[str]]:
    """The same while a worker may be dying under the connection."""
    try:
        return await shown(served)
    except aiohttp.ClientConnectionError:
        return 0, set()


async def test_logs_are_json_lines_and_traces_go_through_to_the_expert(tmp_path: Path) -> None:
    log = tmp_path / "stderr"
    async with collecting() as collector:
        environ = {
            "COE_WORKERS": "2",
            "COE_LOG_FORMAT": "json",
            "COE_ACCESS_LOG": "1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        }
        with log.open("wb") as stderr:
            async with serving(tmp_path, environ=environ, stderr=stderr) as served:
                await send_chat(served, 6)
                served.declare("no yaml: [")
                while b"not reloaded" not in log.read_bytes():
                    await asyncio.sleep(0.02)
                records = await served.records(6)
                sent = {headers["traceparent"] for headers in served.upstream.headers}
        calls = [span for span in collector.spans if span.name == "call"]
        roots = [span for span in collector.spans if span.kind == 2]
    lines: list[dict[str, Any]] = [orjson.loads(line) for line in log.read_bytes().splitlines()]
    requests = [line for line in lines if line["logger"] == "gateway.access"]
    identities = {record.request_id for record in records}
    assert {line["request_id"] for line in requests} == identities
    assert {root.attributes["coe.request_id"] for root in roots} == identities
    assert {root.parent_id for root in roots} == {PARENT}
    assert {traceparent[:-3] for traceparent in sent} == {f"00-{TRACE}-{call.span_id}" for call in calls}
    assert len(calls) == 6
    assert any("not reloaded" in line["message"] and line["level"] == "error" for line in lines)
    assert CANARY not in log.read_text()
    assert CANARY not in str(collector.spans)
