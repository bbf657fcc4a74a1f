"""The gateway in several processes: one page of metrics, one form of log, traces that reach the expert."""

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.gateway.served import Served, serving
from tests.observability.collector import collecting

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
