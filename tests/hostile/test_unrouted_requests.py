"""Requests that end before they are routed: counted by outcome and status, in the access log, without a record."""

import asyncio
import hashlib
import re
from pathlib import Path

import pytest

from tests.gateway.served import Served, chat, serving

pytestmark = pytest.mark.anyio

KEY = "sk-coe-known"
SENT = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
DEADLINE = 60


def keys(**limits: int) -> dict[str, object]:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    scopes = ["chat", "route", "feedback", "admin"]
    return {"keys": [{"name": "known", "sha256": digest, "scopes": scopes, "limits": limits}]}


async def counted(served: Served, outcome: str, status: str) -> float:
    async with served.client.get(f"{served.url}/metrics", headers={"x-api-key": KEY}) as response:
        page = await response.text()
    labels = rf'category="",expert="",outcome="{outcome}",reason="",status="{status}"'
    return sum(
        float(number) for number in re.findall(rf"^coe_requests_total\{{api=\"chat\",{labels}\}} (\S+)$", page, re.M)
    )


async def sent(served: Served, body: bytes, headers: dict[str, str]) -> int:
    url = f"{served.url}/v1/chat/completions"
    async with served.client.post(url, data=body, headers=headers) as response:
        await response.read()
        return response.status


async def leave(served: Served) -> None:
    """A client with a known key that leaves before its body is there."""
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    lines = ("POST /v1/chat/completions HTTP/1.1", "host: localhost", f"authorization: Bearer {KEY}")
    head = (*lines, "content-type: application/json", "content-length: 100", "", "{")
    writer.write("\r\n".join(head).encode())
    await writer.drain()
    while not await served.metric("coe_requests_arriving", key=KEY):
        await asyncio.sleep(0.02)
    writer.close()


async def test_what_was_never_routed_is_counted_and_not_recorded(tmp_path: Path) -> None:
    log = tmp_path / "stderr"
    with log.open("wb") as stderr:
        environ = {"COE_ACCESS_LOG": "1"}
        limits = {"max_body_mb": 0.01}
        async with serving(
            tmp_path, environ=environ, stderr=stderr, access=keys(requests_per_minute=10), limits=limits
        ) as served:
            good = await served.client.post(
                f"{served.url}/v1/chat/completions", json=chat("good"), headers={"authorization": f"Bearer {KEY}"}
            )
            assert good.status == 200
            for _ in range(20):
                assert await sent(served, b"{}", {**SENT, "authorization": "Bearer wrong"}) == 401
            assert await sent(served, b"not json", SENT) == 400
            assert await sent(served, b'{"model": "auto", "messages": 7}', SENT) == 400
            assert (
                await sent(served, b'{"model": "nobody", "messages": [{"role": "user", "content": "x"}]}', SENT) == 404
            )
            assert await sent(served, b" " * 20_000, SENT) == 413
            async with asyncio.timeout(DEADLINE):
                await leave(served)
                while not await counted(served, "aborted", ""):
                    await asyncio.sleep(0.02)
            unlimited = b'{"model": "good", "messages": [{"role": "user", "content": "x"}]}'
            while (status := await sent(served, unlimited, SENT)) == 200:
                pass
            assert status == 429
            expected = {
                ("invalid_api_key", "401"): 20,
                ("invalid_json", "400"): 1,
                ("invalid_request", "400"): 1,
                ("model_not_found", "404"): 1,
                ("body_too_large", "413"): 1,
                ("rate_limit_exceeded", "429"): 1,
                ("aborted", ""): 1,
            }
            assert {kind: await counted(served, *kind) for kind in expected} == expected
        records = await served.records(1)
    assert {record.outcome for record in records} == {"ok"}
    assert good.headers["x-request-id"] in {record.request_id for record in records}
    said = log.read_text()
    for outcome, status in expected:
        assert re.search(rf"outcome={outcome}\b.*" + (rf"\bstatus={status}\b" if status else ""), said)
