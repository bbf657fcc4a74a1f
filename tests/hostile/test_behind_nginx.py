"""Gateways behind a real nginx with deploy/nginx/coe.conf: what one caller provokes ejects no gateway and runs once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp
import pytest

from tests.access.samples import key_of
from tests.gateway import nginx
from tests.gateway.served import Served, chat, serving
from tests.gateway.two_keys import CHAT

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(nginx.NGINX is None, reason=nginx.MISSING)]

KEYS = [key_of(name).model_dump(mode="json") for name in ("alice", "mallory")]
KEYS.append(key_of("operator", scopes=("admin",)).model_dump(mode="json"))
PROVOKED = ("status-500", "torn", "silent", "text-noise", "truncated", "stalls")
"""Experts that fail, each in its way."""
METRICS = "/metrics /metrics/ //metrics /metrics// /%6detrics /metrics%2f /metrics; /metrics;x /metrics?x /metrics%3fx"
METRICS += " /x/../metrics /x/../metrics/ /metrics/. /metrics/.. /metrics/../metrics/ /metrics%00 /METRICS /metrics%20"
METRICS += " /v1/../metrics/ /./metrics/ /%256detrics /metrics%252f http://localhost/metrics/ /metrics/#x /metrics\\"


@dataclass
class Fleet:
    """Two gateways, and nginx before them at `url`."""

    url: str
    gateways: list[Served]
    client: aiohttp.ClientSession

    async def send(self, key: str, model: str = "good", *, stream: bool = False, seconds: float = 60) -> int:
        """Send a request pinned to an expert, read the answer, and return its status; 0 if it breaks off."""
        headers = {"x-api-key": key, "x-coe-timeout": str(seconds)}
        body = chat(model, stream=stream)
        async with self.client.post(self.url + CHAT, json=body, headers=headers) as response:
            try:
                await response.read()
            except aiohttp.ClientPayloadError:
                return 0
            return response.status


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    async with AsyncExitStack() as stack:
        for name in ("one", "two", "nginx"):
            (folder / name).mkdir()
        both = (serving(folder / name, access={"keys": KEYS}) for name in ("one", "two"))
        gateways = list(await asyncio.gather(*map(stack.enter_async_context, both)))
        url = await stack.enter_async_context(nginx.balancing(folder / "nginx", [one.port for one in gateways]))
        connector = aiohttp.TCPConnector(limit=0)
        client = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        yield Fleet(url, gateways, client)


async def test_a_tenant_that_provokes_failures_disturbs_no_other_and_each_request_runs_once(service: Fleet) -> None:
    attack = [
        service.send("mallory", model, stream=number % 2 == 0, seconds=0.5)
        for number in range(10)
        for model in PROVOKED
    ]
    failed = asyncio.gather(*attack)
    answered = Counter([await service.send("alice") for _ in range(100)])
    statuses = Counter(await failed)
    asked = Counter(body["model"] for gateway in service.gateways for body in gateway.upstream.seen)
    assert answered == {200: 100}
    assert statuses.keys() - {200}
    assert asked["good"] == 100
    assert asked <= Counter({"good": 100} | {model.replace("-", ":"): 10 for model in PROVOKED})


async def test_requests_pass_no_page_of_metrics_however_its_path_is_written(service: Fleet) -> None:
    gateway = service.gateways[0].port
    nginx_port = int(service.url.rpartition(":")[2])
    directly = {path for path in METRICS.split() if "coe_requests_total" in await get(gateway, path)}
    behind = {path: await get(nginx_port, path) for path in METRICS.split()}
    known = await get(nginx_port, "/v1/models")
    assert directly >= {"/metrics", "/metrics/", "/%6detrics", "/metrics%2f"}
    assert {path for path, answer in behind.items() if "coe_requests_total" in answer} == set()
    assert " 200 OK" in known


async def get(port: int, path: str) -> str:
    """Return head and body of the answer to a GET of the administrator, its target sent as it is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (f"GET {path} HTTP/1.1", "host: localhost", "x-api-key: operator", "connection: close", "", "")
    writer.write("\r\n".join(head).encode())
    answer = await reader.read()
    writer.close()
    return answer.decode()
